"""`python -m ali table1`: Table 1 as published, and beside it what this code measures."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from ali.arguments import Group
from ali.catalog import KINDS, Model
from ali.cli import terminable
from ali.cli.common import check_at_least, check_between, check_output, set_threads, write_png
from ali.config import MAX_SEED, Config, Precision
from ali.errors import NonFiniteError, UserError
from ali.evaluation.table1 import (
    ALI_D_ROW,
    KNN_ROW,
    M1_KNN_ROW,
    M1_TSVM_ROW,
    MORE_ROWS,
    PIXELS_ROW,
    ROWS,
    SWWAE_ROW,
    TABLE_1,
    TRAINED_ON,
    TSVM_ROW,
    Curve,
    Measured,
    Measurements,
    check_fits,
    curve_name,
    hash_settings,
    learning_curve,
    over_trainings,
    rows_of,
)
from ali.files import append_line, atomic_write, make_folder
from ali.lock import folder_lock
from ali.output import console, lossy_output

if TYPE_CHECKING:
    import numpy as np

WIDTH = 124  # columns of the printed table if the output is not a terminal
NOTE = (
    "trained on: the unlabelled images, where they are known; else ?\n"
    "n × : mean ± std over n trainings, and not over draws"
)
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
            "data data_dir trained ali gan draws output figure output_dir threads",
        ),
        Group("data", "--labels 100 --unlabelled 0", "train_size labels balanced unlabelled"),
        Group("training", "--models ali sdgm --epochs 10 --width 0.5"),
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
    trained: tuple[Path, ...] = ()
    """Checkpoints, runs, trials or full trainings of any models: each goes to its model's rows.
    Several of a model, which must differ in nothing but their seeds, are mean ± std."""
    models: tuple[Model, ...] = ("ali", "gan")
    """Models trained here for --epochs, unless --trained, --ali or --gan has them."""
    epochs: int = 0
    """Passes over the training images of the models trained here; 0: none is trained."""
    seeds: int = 1
    """For training here: how often to train each model that is trained with labels, each time with
    another seed and labelled draw. Other models are trained once, their error is over --draws."""
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
    figure: Path | None = None
    """PNG file to draw val_error by training time in, of all that was trained."""
    threads: int | None = None
    """CPU threads; default: as many as there are cores."""

    @lossy_output()
    def run(self) -> None:
        """Measures what is asked for, prints the table, writes the files. Ctrl-C loses nothing."""
        check_at_least(1, draws=self.draws, labels=self.labels, seeds=self.seeds)
        check_at_least(0, epochs=self.epochs, unlabelled=self.unlabelled)
        check_between(0, MAX_SEED + 1 - self.seeds, seed=self.seed)
        if self.epochs == 1 and "vae-m1m2" in self.models:
            raise UserError("--epochs must be 2 or more, as vae-m1m2 trains M2 after M1")
        check_output(self.output, ".json")
        check_output(self.figure, ".png", "--figure")
        set_threads(self.threads)
        with terminable():
            try:
                table = _Table(self)
                rows = table.rows()
            except KeyboardInterrupt as stop:
                stop.args = ("run the same command again to measure the other rows",)
                raise
        _print(rows, table.title, table.notes)
        if self.figure is not None and table.curves:
            from ali.figures.error_curves import error_curves

            title = f"Table 1's models on {self.data}, {self.labels:,} labels"
            write_png(self.figure, error_curves(table.curves, title))
        if self.output is not None:
            plain = [
                {
                    "row": row.name,
                    "published": row.published,
                    "published_trained_on": TRAINED_ON.get(row.name),
                    "measured": _plain(row.result),
                }
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

        self.options = options
        names = ["data", "data_dir", "train_size", "labels", "balanced"]
        names += ["width", "batch_size", "precision", "seed"]
        self.config = Config(
            **{name: getattr(options, name) for name in names}, epochs=max(1, options.epochs)
        )
        self.given = self._given()
        self.curves: dict[str, list[Curve]] = defaultdict(list)  # by `curve_name`
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
            f" ({options.labels:,} labels, {len(self.dataset.train):,} unlabelled images, "
            f"{len(test):,} test images, "
            f"mean ± std of {options.draws} draws)"
        )
        make_folder(options.output_dir)

    def _given(self) -> dict[str, list[Path]]:
        """The checkpoints given in the options, by row."""
        from ali.training.checkpoint import find_checkpoint, read_manifest

        found: dict[str, list[Path]] = defaultdict(list)
        one_of = [("ali", self.options.ali), ("gan", self.options.gan)]
        for model, path in [*one_of, *((None, path) for path in self.options.trained)]:
            if path is None:
                continue
            folder = find_checkpoint(path)
            config = read_manifest(folder).config
            if model not in (None, config.model):
                raise UserError(
                    f"--{model} {folder} is the checkpoint of a model {config.model}: give one "
                    f"trained with --model {model}, or --trained {path}"
                )
            if config.data == "mixture":
                raise UserError(f"{folder} is of the mixture, whose points are no images")
            for row in rows_of(config):
                if found[row]:
                    _refuse_other(found[row][0], folder, row)
                found[row].append(folder)
        return found

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
        }
        for model, names in ROWS.items():
            for row in names:
                results[row] = self._of_model(model, row)
        return [_Line(name, published, results[name]) for name, published in (*TABLE_1, *MORE_ROWS)]

    def _of_model(self, model: Model, row: str) -> Measured | str:
        """The error in a model's row, or why there is none."""
        if row == M1_TSVM_ROW and not self.options.unlabelled:
            return "--unlabelled 0"
        try:
            folders = self.given[row] or self._trained(model, row)
            if not folders:
                option = f"--{model}" if model in ("ali", "gan") else "--trained"
                listed = model in self.options.models
                return f"give {option}, or " + ("--epochs" if listed else f"--models {model}")
            return over_trainings([self._measure(row, folder) for folder in folders])
        except NonFiniteError as error:
            return f"training diverged ({error})"
        except FloatingPointError:
            return "the features are not finite"

    def _measure(self, row: str, folder: Path) -> Measured:
        from ali.evaluation import baselines, protocol
        from ali.training import checkpoint
        from ali.training.state import load_networks
        from ali.training.step import device

        networks, manifest = load_networks(folder, device())
        config = manifest.config
        check_fits(folder, networks, config, self.dataset, self.config)
        weights = manifest.checksum(checkpoint.WEIGHTS)
        curve = learning_curve(folder, manifest.epoch)
        first = row == rows_of(config)[0]  # a curve is drawn once, whatever its model's rows
        if first and config.data != self.options.data:
            self.notes.append(f"{folder} was trained on {config.data}.")
        judged = curve is not None and any(map(math.isfinite, curve.errors))
        if first and curve and judged:
            self.curves[curve_name(config)].append(curve)
        elif first and self.options.figure:
            self.notes.append(f"Not in the figure: {folder}, which has no val_error beside it.")
        budget: dict[str, Any] = {
            "seconds": curve.seconds[-1] if curve and curve.seconds else None,
            "epochs": manifest.epoch,
            "images": manifest.step * config.batch_size,
        }

        def features(x: np.ndarray) -> np.ndarray:
            if row == ALI_D_ROW:
                return protocol.discriminator_features(networks, x)
            return protocol.features(networks, x)

        unlabelled = self.options.unlabelled
        by = {
            M1_KNN_ROW: partial(baselines.nearest_neighbour_errors, features=features),
            M1_TSVM_ROW: partial(
                baselines.transductive_svm_errors, unlabelled=unlabelled, features=features
            ),
            ALI_D_ROW: partial(protocol.test_errors, networks, encode=features),
        }
        if row in by:
            more = {"unlabelled": unlabelled} if row == M1_TSVM_ROW else {}
            return self.measurements.of_features(row, by[row], budget, weights=weights, **more)
        return self.measurements.of_networks(row, networks, weights, **budget)

    def _trained(self, model: Model, row: str) -> list[Path]:
        """Checkpoints of a model trained to --epochs, resumed where they were stopped."""
        options = self.options
        if not options.epochs or model not in options.models:
            return []
        config = self.config.replace(
            model=model, eval_every=options.epochs, **KINDS[model].defaults
        )
        if row == SWWAE_ROW:
            config = config.replace(dropout_fc=0.0)
        if model == "vae-m1m2":  # so that more --epochs are another training, of M1 too
            config = config.replace(m1_epochs=options.epochs // 2)
        if not KINDS[model].classifies:
            return [self._train(config)]
        each = range(options.seeds)
        return [self._train(config.replace(seed=config.seed + i, draw=i)) for i in each]

    def _train(self, config: Config) -> Path:
        """The checkpoint of a configuration trained in full."""
        from ali import experiment
        from ali.history import LOG
        from ali.training.checkpoint import MANIFEST
        from ali.training.state import State, resumable_changes
        from ali.training.step import device

        changing = resumable_changes(config)
        fixed = {k: v for k, v in config.to_dict().items() if k not in changing}
        key = hash_settings(fixed | {"on": self.dataset.fingerprint})
        run = self.options.output_dir / f"{config.model}-{key}"
        folder = run / "checkpoint"
        with folder_lock(make_folder(run), f"the training in {run}"):
            begun = (folder / MANIFEST).exists()
            start = State.load(folder, device(), config) if begun else None
            for state, metrics in experiment.run(config, self.dataset, start):
                append_line(run / LOG, json.dumps(metrics))
                state.save(folder)
                print(f"{config.model}: epoch {state.epoch}/{config.epochs}", flush=True)
        return folder


def _refuse_other(one: Path, other: Path, row: str) -> None:
    """Raises UserError unless two checkpoints are trainings of one configuration."""
    from ali.training.checkpoint import read_manifest

    if one.resolve() == other.resolve():
        raise UserError(f"{other} is given twice")
    pair = [read_manifest(folder) for folder in (one, other)]
    seeds = {"seed", "draw", "data_dir"}
    first, second = ({**m.config.to_dict(), "epochs": m.epoch} for m in pair)
    if differ := [name for name in first if name not in seeds and first[name] != second[name]]:
        raise UserError(
            f"{one} and {other} are both for the row {row}, but differ in {', '.join(differ)}: "
            "give trainings that differ in their seeds alone, or one"
        )


def _plain(result: Measured | str) -> dict[str, Any] | str:
    return f"not measured: {result}" if isinstance(result, str) else asdict(result)


def _print(rows: list[_Line], title: str, notes: list[str]) -> None:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("model", no_wrap=True)
    table.add_column("published", justify="right", no_wrap=True)
    table.add_column("trained on", no_wrap=True)
    table.add_column("measured here", justify="right", no_wrap=True)
    table.add_column("trained on, or why not measured")
    for name, published, result in rows:
        if name == MORE_ROWS[0][0]:
            table.add_section()
        theirs = TRAINED_ON.get(name, "–" if published == "–" else "?")
        if isinstance(result, str):
            table.add_row(name, published, theirs, "not measured", result)
            continue
        error = f"{100 * result.mean:.2f} %"
        if result.draws > 1 or result.trainings > 1:
            error += f" (± {100 * result.std:.2f} %)"
        table.add_row(name, published, theirs, error, _budget(result))
    text = console()
    if not text.is_terminal:
        text = console(width=WIDTH)
    text.print(table)
    text.print(NOTE, soft_wrap=True)
    for note in notes:
        text.print(note, soft_wrap=True)


def _budget(result: Measured) -> str:
    parts = []
    if result.epochs is not None:
        trainings = f"{result.trainings} × " if result.trainings > 1 else ""
        parts = [f"{trainings}{result.epochs} epochs", f"{result.images:,} images"]
    if result.seconds is not None:
        parts.append(f"{result.seconds:,.0f} s")
    return ", ".join(parts)
