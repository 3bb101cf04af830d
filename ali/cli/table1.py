"""`python -m ali table1`: Table 1 as published, and beside it what this code measures."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from ali.arguments import Group
from ali.cli import terminable
from ali.cli.common import check_at_least, check_suffix, set_threads
from ali.config import Config, Model, Precision
from ali.errors import NonFiniteError, UserError
from ali.evaluation.table1 import (
    ALI_ROW,
    DCGAN_ROW,
    KNN_ROW,
    PIXELS_ROW,
    TABLE_1,
    TSVM_ROW,
    Measured,
    Measurements,
    hash_settings,
    training_seconds,
)
from ali.files import append_line, atomic_write, make_folder
from ali.output import console, lossy_output

WIDTH = 110  # columns of the printed table if the output is not a terminal
MEASURED = "measured.json"  # in the output folder


@dataclass(frozen=True, kw_only=True)
class Table1:
    """Print Table 1 as published, and as measured on a data set by the same protocol.

    Results are kept in --output-dir: run the same command again to resume it.
    """

    GROUPS: ClassVar[tuple[Group, ...]] = (
        Group(
            "common",
            "--data house-numbers --ali runs/one",
            "data data_dir ali gan draws output output_dir threads",
        ),
        Group("data", "--labels 100 --unlabelled 0", "train_size labels balanced unlabelled"),
        Group("training", "--epochs 10 --width 0.5"),
    )

    data: Literal["svhn", "house-numbers", "cifar10"] = "svhn"
    """Data set: labelled, with a test split."""
    data_dir: Path | None = None
    """Folder of its official files; default: ./data/<name>, downloaded if missing."""
    train_size: int | None = None
    """Unlabelled training images used; default: all."""
    labels: int = 1000
    """Labelled images that a classifier is trained on."""
    balanced: bool = True
    """Draw equally many labelled images of each class; otherwise uniformly at random."""
    draws: int = 100
    """Random draws of the labelled images, each with its own classifier; an error is mean ± std."""
    unlabelled: int = 4000
    """Unlabelled training images for the transductive SVM; 0 leaves its row out."""
    ali: Path | None = None
    """For the row ALI: a checkpoint, run, trial or full training; default: trained here for
    --epochs."""
    gan: Path | None = None
    """For the row DCGAN: the same of a `train --model gan`; default: trained here for --epochs."""
    epochs: int = 0
    """Passes over the training images of the ALI and the GAN trained here; 0: none is trained."""
    width: float = 1.0
    """For training here: multiplier of every hidden layer's feature maps; 1 is the paper's."""
    batch_size: int = 100
    """For training here: images per step."""
    precision: Precision = "auto"
    """For training here: fp32, or bf16 activations; auto: bf16 where the hardware multiplies
    matrices in it."""
    seed: int = 0
    """For training here: seed of weights, data order, noise and dropout."""
    output_dir: Path = Path("runs/table1")
    """Folder of the results and of checkpoints."""
    output: Path | None = None
    """JSON file to write the table to, too."""
    threads: int | None = None
    """CPU threads; default: as many as there are cores."""

    @lossy_output()
    def run(self) -> None:
        """Measures what is asked for, prints the table, writes --output. Ctrl-C loses nothing."""
        check_at_least(1, draws=self.draws, labels=self.labels)
        check_at_least(0, epochs=self.epochs, unlabelled=self.unlabelled)
        check_suffix(self.output, ".json")
        set_threads(self.threads)
        with terminable():
            try:
                table = _Table(self)
                rows = table.rows()
            except KeyboardInterrupt as stop:
                stop.args = ("run the same command again to measure the other rows",)
                raise
        _print(rows, table.title, table.notes)
        if self.output is not None:
            plain = [
                {"row": row.name, "published": row.published, "measured": _plain(row.result)}
                for row in rows
            ]
            content = {"title": table.title, "notes": table.notes, "rows": plain}
            with atomic_write(self.output) as path:
                text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
                path.write_text(text, encoding="utf-8")


class _Line(NamedTuple):
    """A line of the printed table; its result is an error, or why there is none."""

    name: str
    published: str
    result: Measured | str


class _Table:
    """The lines of the table on the data set that is asked for."""

    def __init__(self, options: Table1) -> None:
        from ali import data
        from ali.training.checkpoint import find_checkpoint

        self.options = options
        names = ["data", "data_dir", "train_size", "labels", "balanced"]
        names += ["width", "batch_size", "precision", "seed"]
        self.config = Config(
            **{name: getattr(options, name) for name in names}, epochs=max(1, options.epochs)
        )
        given = {"ali": options.ali, "gan": options.gan}
        self.given = {model: path and find_checkpoint(path) for model, path in given.items()}
        self.dataset = data.load(self.config)
        test = data.load_test(self.config)
        self.measurements = Measurements(
            self.dataset, test, self.config, options.draws, options.output_dir / MEASURED
        )
        self.notes = [*self.dataset.notes, *data.load_splits(self.config, ("test",)).notes]
        if options.data != "svhn" or self.notes or options.labels != 1000:
            self.notes.append(
                "Not comparable with the published errors: they are for the official SVHN, all of "
                "it, with 1000 labels."
            )
        self.title = (
            f"Table 1: test error as published (SVHN, 1000 labels), and measured on {options.data}"
            f" ({options.labels:,} labels, {len(test):,} test images, "
            f"mean ± std of {options.draws} draws)"
        )
        make_folder(options.output_dir)

    def rows(self) -> list[_Line]:
        """All rows, the paper's first; measured one after the other."""
        from ali.evaluation import baselines

        baseline, unlabelled = self.measurements.of_baseline, self.options.unlabelled
        results: dict[str, Measured | str] = {
            PIXELS_ROW: baseline(PIXELS_ROW, baselines.raw_pixel_errors),
            KNN_ROW: baseline(KNN_ROW, baselines.nearest_neighbour_errors),
            TSVM_ROW: baseline(TSVM_ROW, baselines.transductive_svm_errors, unlabelled=unlabelled)
            if unlabelled
            else "--unlabelled 0",
            DCGAN_ROW: self._networks(DCGAN_ROW, "gan"),
            ALI_ROW: self._networks(ALI_ROW, "ali"),
        }
        none = "no such model here"
        rows = [_Line(name, published, results.get(name, none)) for name, published in TABLE_1]
        return [*rows, _Line(PIXELS_ROW, "–", results[PIXELS_ROW])]

    def _networks(self, row: str, model: Model) -> Measured | str:
        from ali.training import checkpoint
        from ali.training.state import load_networks
        from ali.training.step import device

        try:
            folder = self.given[model] or self._trained(model)
            if folder is None:
                return f"give --{model} a checkpoint, or --epochs"
            networks, config = load_networks(folder, device())
            if config.model != model:
                raise UserError(
                    f"--{model} {folder} is the checkpoint of a model {config.model}: give one "
                    f"trained with --model {model}"
                )
            if networks.image[1:] != self.dataset.valid.x.shape[1:3]:
                size = "×".join(map(str, networks.image[1:]))
                raise UserError(
                    f"--{model} {folder} takes images of {size} pixels: choose another --data"
                )
            manifest = checkpoint.read_manifest(folder)
            return self.measurements.of_networks(
                row,
                networks,
                manifest.checksum(checkpoint.WEIGHTS),
                seconds=training_seconds(folder.parent / "metrics.jsonl", manifest.epoch),
                epochs=manifest.epoch,
                images=manifest.step * config.batch_size,
            )
        except NonFiniteError as error:
            return f"training diverged ({error})"
        except FloatingPointError:
            return "the features are not finite"

    def _trained(self, model: Model) -> Path | None:
        """Checkpoint of a model trained to --epochs, resumed where it was stopped."""
        from ali import experiment
        from ali.training.checkpoint import MANIFEST
        from ali.training.state import RESUMABLE_CHANGES, State
        from ali.training.step import device

        epochs = self.options.epochs
        if not epochs:
            return None
        config = self.config.replace(model=model, eval_every=epochs)
        fixed = {k: v for k, v in config.to_dict().items() if k not in RESUMABLE_CHANGES}
        key = hash_settings(fixed | {"on": self.dataset.fingerprint})
        run = self.options.output_dir / f"{model}-{key}"
        folder = run / "checkpoint"
        begun = (folder / MANIFEST).exists()
        start = State.load(folder, device(), config) if begun else None
        make_folder(run)
        for state, metrics in experiment.run(config, self.dataset, start):
            append_line(run / "metrics.jsonl", json.dumps(metrics))
            state.save(folder)
            print(f"{model}: epoch {state.epoch}/{epochs}", flush=True)
        return folder


def _plain(result: Measured | str) -> dict[str, Any] | str:
    return f"not measured: {result}" if isinstance(result, str) else asdict(result)


def _print(rows: list[_Line], title: str, notes: list[str]) -> None:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("model", no_wrap=True)
    table.add_column("published", justify="right", no_wrap=True)
    table.add_column("measured here", justify="right", no_wrap=True)
    table.add_column("budget, or why not measured")
    for name, published, result in rows:
        if name == PIXELS_ROW:
            table.add_section()
        if isinstance(result, str):
            table.add_row(name, published, "not measured", result)
        else:
            error = f"{100 * result.mean:.2f} % (± {100 * result.std:.2f} %)"
            table.add_row(name, published, error, _budget(result))
    text = console()
    if not text.is_terminal:
        text = console(width=WIDTH)
    text.print(table)
    for note in notes:
        text.print(note, soft_wrap=True)


def _budget(result: Measured) -> str:
    parts = []
    if result.epochs is not None:
        parts = [f"{result.epochs} epochs", f"{result.images:,} images"]
    if result.seconds is not None:
        parts.append(f"{result.seconds:,.0f} s")
    return ", ".join(parts)
