"""Table 1: the published errors, and beside them what this code measures on one's own data (§4.4).

With sweeps/best.py the only place that reads the test split, and like there it chooses nothing.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ali.cli import terminable
from ali.config import Config, Model, Precision
from ali.errors import NonFiniteError, UserError
from ali.files import atomic_write, make_folder
from ali.metrics import EPOCH

if TYPE_CHECKING:
    import numpy as np

KNN, TSVM, DCGAN, ALI = "KNN", "TSVM", "DCGAN + L2-SVM", "ALI"
TABLE_1 = (  # test error on SVHN with 1000 labels
    (KNN, "77.93 %"),
    (TSVM, "66.55 %"),
    ("VAE (M1 + M2)", "36.02 %"),
    ("SWWAE without dropout", "27.83 %"),
    ("SWWAE with dropout", "23.56 %"),
    (DCGAN, "22.18 % (± 1.13 %)"),
    ("SDGM", "16.61 % (± 0.24 %)"),
    (ALI, "19.14 % (± 0.50 %)"),
)
PIXELS = "L2-SVM on pixels"  # no row of the paper's
METHOD = 1  # changes when a row is measured otherwise, and what was measured before no longer holds
WIDTH = 110  # columns of the printed table where there is no terminal
MEASURED = "measured.json"  # in the output folder, by settings


@dataclass(frozen=True, kw_only=True)
class Table1:
    """Print Table 1 as published, and what is measured on a data set by the same protocol.

    What is measured is kept in --output-dir: the same command again goes on where it was stopped.
    """

    data: Literal["svhn", "house-numbers", "cifar10"] = "svhn"
    """Data set: labelled, with a test split."""
    data_dir: Path | None = None
    """Folder of its official files; default: ./data/<name>, downloaded if need be."""
    train_size: int | None = None
    """Unlabelled training images used; default: all."""
    labels: int = 1000
    """Labelled images a classifier sees."""
    balanced: bool = True
    """Draw as many labelled images of each class; otherwise at random."""
    draws: int = 100
    """Labelled draws, each with its own classifier, behind a mean ± std."""
    unlabelled: int = 4000
    """Training images that the transductive SVM sees besides; 0 leaves its row out."""
    ali: Path | None = None
    """Checkpoint or run of `train` for the row ALI; default: trained here for --epochs."""
    gan: Path | None = None
    """The same of a `train --model gan` for the row DCGAN; default: trained here for --epochs."""
    epochs: int = 0
    """Passes over the training images of the ALI and the GAN trained here; 0: none is trained."""
    width: float = 1.0
    """Of those: multiplier of every hidden layer's feature maps; 1 is the paper's."""
    batch_size: int = 100
    """Of those: images a step."""
    precision: Precision = "auto"
    """Of those: fp32, or bf16 activations; auto: bf16 where the hardware multiplies matrices in
    it."""
    seed: int = 0
    """Of those: seed of weights, data order, noise and dropout."""
    output_dir: Path = Path("runs/table1")
    """Folder of what was measured and of checkpoints."""
    output: Path | None = None
    """JSON file to write the table to, too."""
    threads: int | None = None
    """CPU threads; default: as many as there are cores."""


@dataclass(frozen=True)
class Measured:
    """A row's result: test error of `draws` classifiers, fractions, and what went into it."""

    mean: float
    std: float  # n − 1 in the denominator; 0 for a single draw
    draws: int
    seconds: float | None  # wall time of training, for networks; else of the whole row
    epochs: int | None = None
    images: int | None = None  # seen in training, repeats counted


Row = tuple[str, str, Measured | str]  # name, published, measured or why not


def run(options: Table1) -> None:
    """Measures what is asked for, prints the table, writes --output. Ctrl-C loses nothing."""
    for name in ("draws", "labels"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(options, name)}")
    for name in ("epochs", "unlabelled"):
        if getattr(options, name) < 0:
            raise UserError(f"--{name} must be 0 or more, not {getattr(options, name)}")
    if options.output is not None and options.output.suffix != ".json":
        raise UserError(f"--output must end in .json, not {options.output.name!r}")
    with terminable():
        try:
            table = _Table(options)
            rows = table.rows()
        except KeyboardInterrupt as stop:
            stop.args = ("the same command goes on with what is not measured yet",)
            raise
    _print(rows, table.title, table.notes)
    if options.output is not None:
        told = [
            {"row": name, "published": published, "measured": _plain(result)}
            for name, published, result in rows
        ]
        content = {"title": table.title, "notes": table.notes, "rows": told}
        with atomic_write(options.output) as path:
            path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


class _Table:
    """The data, and what has been measured on it."""

    def __init__(self, options: Table1) -> None:
        from ali import data
        from ali.training.checkpoint import find_checkpoint

        self.options = options
        shared = ("data", "data_dir", "train_size", "labels", "balanced")
        trained = ("width", "batch_size", "precision", "seed")
        self.config = Config(
            **{name: getattr(options, name) for name in shared + trained},
            epochs=max(1, options.epochs),
        )
        given = {"ali": options.ali, "gan": options.gan}  # before hours of work: are they there?
        self.given = {model: path and find_checkpoint(path) for model, path in given.items()}
        self.dataset = data.load(self.config)
        self.test = data.load_test(self.config)
        assert self.test.y is not None
        contents = hashlib.blake2b(self.test.x.tobytes() + self.test.y.tobytes(), digest_size=8)
        self.settings: dict[str, Any] = {
            "method": METHOD,
            "data": self.dataset.fingerprint,
            "test": contents.hexdigest(),
            **{name: getattr(options, name) for name in ("labels", "balanced", "draws")},
        }
        of_test = data.load_splits(self.config, ("test",)).notes
        self.notes = [*self.dataset.notes, *of_test]
        if options.data != "svhn" or self.notes or options.labels != 1000:
            self.notes.append(
                "Not comparable with the published errors: they are for the official SVHN, all of "
                "it, with 1000 labels."
            )
        self.title = (
            f"Table 1: test error as published (SVHN, 1000 labels), and measured on {options.data}"
            f" ({options.labels:,} labels, {len(self.test):,} test images, "
            f"mean ± std of {options.draws} draws)"
        )
        make_folder(options.output_dir)

    def rows(self) -> list[Row]:
        """All rows, the paper's first; measured one after the other."""
        from ali.evaluation import baselines

        unlabelled = self.options.unlabelled
        measured: dict[str, Measured | str] = {
            PIXELS: self._timed(PIXELS, baselines.raw_pixel_errors),
            KNN: self._timed(KNN, baselines.nearest_neighbour_errors),
            TSVM: self._timed(TSVM, baselines.transductive_svm_errors, unlabelled=unlabelled)
            if unlabelled
            else "--unlabelled 0",
            DCGAN: self._networks(DCGAN, "gan"),
            ALI: self._networks(ALI, "ali"),
        }
        none = "no such model here"
        rows = [(name, published, measured.get(name, none)) for name, published in TABLE_1]
        return [*rows, (PIXELS, "–", measured[PIXELS])]

    def _timed(self, row: str, errors: Callable[..., np.ndarray], **settings: int) -> Measured:
        def measure() -> Measured:
            start = time.perf_counter()
            found = errors(self.dataset, self.test, self.config, self.options.draws, **settings)
            return _result(found, seconds=time.perf_counter() - start)

        return self._known(row, settings, measure)

    def _networks(self, row: str, model: Model) -> Measured | str:
        from ali.evaluation import protocol
        from ali.training import checkpoint
        from ali.training.state import load_networks
        from ali.training.step import device

        try:
            folder = self.given[model] or self._trained(model)
            if folder is None:
                return f"give --{model} a checkpoint, or --epochs"
            networks, config = load_networks(folder, device())
            if config.model != model:
                raise UserError(f"--{model} {folder} is the checkpoint of a model {config.model}")
            if networks.table.image[1:] != self.test.x.shape[1:3]:
                size = "×".join(map(str, networks.table.image[1:]))
                raise UserError(f"--{model} {folder} takes images of {size} pixels: not these")
            manifest = checkpoint.read_manifest(folder)

            def measure() -> Measured:
                found = protocol.test_errors(
                    networks, self.dataset, self.test, self.config, self.options.draws
                )
                return _result(
                    found,
                    seconds=_seconds(folder.parent / "metrics.jsonl", manifest.epoch),
                    epochs=manifest.epoch,
                    images=manifest.step * config.batch_size,
                )

            return self._known(row, {"weights": manifest.checksum(checkpoint.WEIGHTS)}, measure)
        except NonFiniteError as error:
            return f"training diverged ({error})"
        except FloatingPointError:
            return "the features are not finite"

    def _trained(self, model: Model) -> Path | None:
        """Checkpoint of a model trained to --epochs, from where it was stopped."""
        from ali import experiment
        from ali.training.state import RESUMABLE_CHANGES, State
        from ali.training.step import device

        epochs = self.options.epochs
        if not epochs:
            return None
        config = self.config.replace(model=model, eval_every=epochs)
        fixed = {k: v for k, v in config.to_dict().items() if k not in RESUMABLE_CHANGES}
        run = self.options.output_dir / f"{model}-{_key(fixed | {'on': self.dataset.fingerprint})}"
        folder = run / "checkpoint"
        begun = (folder / "state.json").exists()
        start = State.load(folder, device(), config) if begun else None
        make_folder(run)
        for state, metrics in experiment.run(config, self.dataset, start):
            with open(run / "metrics.jsonl", "a") as log:
                log.write(json.dumps(metrics) + "\n")
            state.save(folder)
            print(f"{model}: epoch {state.epoch}/{epochs}", flush=True)
        return folder

    def _known(
        self, row: str, settings: dict[str, Any], measure: Callable[[], Measured]
    ) -> Measured:
        """What was measured with these settings before, or is now."""
        path = self.options.output_dir / MEASURED
        key = _key({"row": row, **self.settings, **settings})
        if (known := _read(path).get(key)) is not None:
            return Measured(**known)
        print(f"measuring {row}: {self.options.draws} draws", flush=True)
        found = measure()
        with atomic_write(path) as partial:
            partial.write_text(json.dumps(_read(path) | {key: asdict(found)}, indent=1) + "\n")
        return found


def _key(settings: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=6).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        if isinstance(found, dict):
            return found
    except FileNotFoundError:
        return {}
    except ValueError:
        pass
    raise UserError(f"{path} is damaged: delete it, and its rows are measured again")


def _seconds(log: Path, epochs: int) -> float | None:
    """Wall time of training up to an epoch, if all of its epochs are in the log of the run."""
    from ali.metrics import TRAIN_SECONDS

    seconds: dict[int, float] = {}
    for line in log.read_text().splitlines() if log.exists() else []:
        try:
            metrics = json.loads(line)
            seconds[metrics[EPOCH]] = metrics[TRAIN_SECONDS]  # of an epoch done twice, the last
        except (ValueError, KeyError, TypeError):  # a line that a kill cut short
            continue
    wanted = range(1, epochs + 1)
    return sum(seconds[epoch] for epoch in wanted) if seconds.keys() >= set(wanted) else None


def _result(errors: np.ndarray, **budget: Any) -> Measured:
    std = float(errors.std(ddof=1)) if len(errors) > 1 else 0.0
    return Measured(float(errors.mean()), std, len(errors), **budget)


def _plain(result: Measured | str) -> dict[str, Any] | str:
    return f"not measured: {result}" if isinstance(result, str) else asdict(result)


def _print(rows: list[Row], title: str, notes: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("model", no_wrap=True)
    table.add_column("published", justify="right", no_wrap=True)
    table.add_column("measured here", justify="right", no_wrap=True)
    table.add_column("budget, or why not measured")
    for name, published, result in rows:
        if name == PIXELS:
            table.add_section()
        if isinstance(result, str):
            table.add_row(name, published, "not measured", result)
        else:
            error = f"{100 * result.mean:.2f} % (± {100 * result.std:.2f} %)"
            table.add_row(name, published, error, _budget(result))
    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=WIDTH)
    console.print(table)
    for note in notes:
        console.print(note, highlight=False, soft_wrap=True)


def _budget(result: Measured) -> str:
    parts = []
    if result.epochs is not None:
        parts = [f"{result.epochs} epochs", f"{result.images:,} images"]
    if result.seconds is not None:
        parts.append(f"{result.seconds:,.0f} s")
    return ", ".join(parts)
