"""Table 1 with every row measured: a sweep for each model, then trainings of what it found, tested.

    python -m benchmarks.table1 --data svhn --data-dir DIR      run it again to resume

Each model gets the same processor time, in epochs that are counted from its own speed, so that
other work on the machine favours none: --search-minutes of two cores for a sweep as sweeps/svhn.py
starts it, then --training-minutes of one core for each training of the configuration that it found,
with seeds that no sweep has used; a model that is trained with labels also gets other labelled
images each time. The test split is read at the end, by `python -m ali table1`, which prints the
table; a figure shows validation error by processor time. All models come to two seeds before any
gets more, so that what was stopped is a smaller comparison.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Literal

import optuna

from ali import __main__ as commands
from ali import environment, experiment
from ali.catalog import KINDS, Model
from ali.cli import main, parse_args
from ali.cli.common import check_at_least, check_choices, write_png
from ali.cli.table1 import Table1
from ali.cli.train import CONFIG
from ali.config import Common, Config
from ali.errors import UserError
from ali.evaluation.table1 import Curve, curve_name, learning_curve
from ali.figures.error_curves import error_curves
from ali.files import atomic_write, make_folder
from ali.lock import folder_lock
from ali.training.checkpoint import MANIFEST, find_checkpoint, read_manifest
from benchmarks.live_searches import (
    FOUND,
    JUDGES,
    SLOTS,
    announce,
    begin,
    check_data,
    read,
    spent,
    swept,
)
from benchmarks.processes import apart
from sweeps import Objective, Options, Space, Sweep, paper_defaults, short_budget

PLAIN = "swwae-plain"  # without dropout
MODELS = (*KINDS, PLAIN)
PACE, DIVERGED = "pace.json", "diverged.txt"
TRIALS = 4  # whole trials in the time of one training
TRIAL_EVALUATIONS, TRAINING_EVALUATIONS = 8, 12
FREE = ("output_dir", "models", "seeds", "draws", "unlabelled")  # may differ in a continuation


@dataclass(frozen=True)
class Comparison:
    """Sweep, train and test each model of Table 1, and print the table."""

    data: Literal["svhn", "house-numbers"] = "svhn"
    """Data set."""
    data_dir: Path | None = None
    """Folder of its files."""
    output_dir: Path = Path("runs/table1-searched")
    """Folder of all sweeps and trainings."""
    models: tuple[str, ...] = MODELS
    """Which models; swwae-plain is swwae without dropout."""
    train_size: int | None = None
    """Unlabelled training images used; default: all."""
    labels: int = 1000
    """Labelled images."""
    width: float = 0.25
    """Multiplier of every hidden layer's feature maps."""
    batch_size: int = 32
    """Images per step."""
    search_minutes: float = 20.0
    """Of two cores, for the sweep of each model."""
    training_minutes: float = 10.0
    """Of one core, for each training."""
    objective: str | None = None
    """What the sweeps of models without a classifier of their own minimize in place of val_error,
    which in short trials says little of them (docs/space.md)."""
    seeds: int = 2
    """Trainings of each model."""
    draws: int = 100
    """SVMs that a training is tested with."""
    unlabelled: int = 4000
    """Unlabelled training images for the transductive SVM."""

    def check(self) -> None:
        """Raises UserError before anything is written."""
        check_choices("models", self.models, MODELS)
        check_at_least(1, seeds=self.seeds, draws=self.draws)
        check_at_least(0, unlabelled=self.unlabelled)
        for option in ("search_minutes", "training_minutes"):
            if not getattr(self, option) > 0:
                name = option.replace("_", "-")
                raise UserError(f"--{name} must be above 0, not {getattr(self, option)}")
        if self.objective is not None:
            Objective.parse(self.objective)
        check_data(Subject("ali", self).base(epochs=1))


@dataclass(frozen=True)
class Subject:
    """One model of the comparison, its folder and its budgets."""

    name: str
    options: Comparison

    @cached_property
    def folder(self) -> Path:
        return make_folder(self.options.output_dir / self.name)

    def base(self, epochs: int, evaluations: int = 1) -> Config:
        """What its trials and trainings have in common."""
        options, model = self.options, self._model
        return Config.of_model(model).replace(
            data=options.data, data_dir=options.data_dir and options.data_dir.resolve(),
            train_size=options.train_size, labels=options.labels, width=options.width,
            batch_size=options.batch_size, draws=2, epochs=epochs,
            eval_every=max(1, epochs // evaluations),
            sigma="sigmoid" if model in ("ali", "ali-labels") else "exp",
        )  # fmt: skip

    @property
    def _model(self) -> Model:
        return "swwae" if self.name == PLAIN else self.name  # type: ignore[return-value]

    def epochs(self, minutes: float) -> int:
        """How many its networks train in so much processor time."""
        if not (self.folder / PACE).exists():
            apart([(measure_pace, (self.base(epochs=4), self.folder))])
        return max(1, round(60 * minutes / read(self.folder / PACE)["seconds"]))

    def search(self) -> None:
        """Its sweep, unless that has ended."""
        if (self.folder / FOUND).exists():
            return
        epochs = max(2, self.epochs(self.options.training_minutes) // TRIALS)
        budget = self.epochs(SLOTS * self.options.search_minutes)
        base = self.base(epochs, TRIAL_EVALUATIONS)
        common = {field.name: getattr(base, field.name) for field in fields(Common)}
        asked = Options(
            **common, name=self.name, output_dir=self.folder, race=3, num_trials=budget,
            cpus_per_trial=1, max_concurrent=SLOTS,
            objective=None if KINDS[self._model].classifies else self.options.objective,
        )  # fmt: skip
        space = Space(fixed={"dropout_fc": 0.0} if self.name == PLAIN else {})
        points = (paper_defaults, short_budget)  # as in sweeps/svhn.py
        best = swept(Sweep(space=space, points_to_evaluate=points), asked, budget).best
        assert best.value is not None
        announce(self.folder, best.config, best.value, epochs=spent(asked), trial=best.trial_id)

    def trainings(self) -> Iterator[tuple[Path, Config]]:
        """Folder and settings of each."""
        epochs = max(2, self.epochs(self.options.training_minutes))
        every = max(1, epochs // TRAINING_EVALUATIONS)
        for n in range(self.options.seeds):
            more = {"seed": JUDGES + n, "epochs": epochs, "eval_every": every}
            if KINDS[self._model].classifies:
                more["draw"] = n
            found = read(self.folder / FOUND)["config"]
            yield self.folder / f"training-{n}", Config.from_dict({**found, **more})


def measure_pace(config: Config, folder: Path) -> None:
    """In a process of its own: processor seconds of an epoch, without evaluation, on one thread.

    The second and third of four count: M1 + M2 trains M1 in the one and M2 in the other.
    """
    import torch

    torch.set_num_threads(1)
    ends = [time.process_time()]
    for _ in experiment.run(config):
        ends.append(time.process_time())
        if len(ends) == 4:
            break
    with atomic_write(folder / PACE) as path:
        path.write_text(json.dumps({"seconds": (ends[3] - ends[1]) / 2}), encoding="utf-8")


def train(folder: Path, config: Config) -> None:
    """In a process of its own: `python -m ali train`, started or resumed, unless it has ended."""
    ended = (folder / "checkpoint" / MANIFEST).exists() and (
        read_manifest(find_checkpoint(folder)).epoch >= config.epochs
    )
    if ended or (folder / DIVERGED).exists():
        return
    output = ["--output-dir", str(folder), "--threads", "1"]
    settings = folder.with_suffix(".json")
    settings.write_text(json.dumps(config.to_dict(), default=str), encoding="utf-8")
    source = ["--resume"] if (folder / CONFIG).exists() else ["--config", str(settings)]
    try:
        commands.run(["train", *source, *output])
    except SystemExit as stopped:
        if "diverged" not in str(stopped):
            raise
        (folder / DIVERGED).write_text(f"{stopped}\n", encoding="utf-8")


def run(options: Comparison) -> None:
    """All that is missing. Raises UserError for bad options, bad data, and options that differ from
    the first time's."""
    options.check()
    make_folder(options.output_dir)
    environment.set_defaults(OMP_NUM_THREADS="1")  # of the processes: the SVMs' threads, too
    subjects = [Subject(name, options) for name in dict.fromkeys(options.models)]
    with folder_lock(options.output_dir, "the comparison"):
        begin(options.output_dir, options, FREE)
        for first in range(0, options.seeds, SLOTS):
            for subject in subjects:
                subject.search()
                trainings = list(subject.trainings())[first : first + SLOTS]
                apart([(train, one) for one in trainings])
    trained = []
    for subject in subjects:
        for folder, config in subject.trainings():
            if (diverged := folder / DIVERGED).exists():
                print(f"left out: {folder}, {diverged.read_text(encoding='utf-8').strip()}")
            else:
                trained.append((subject, folder, config))
    Table1(
        data=options.data, data_dir=options.data_dir, train_size=options.train_size,
        labels=options.labels, draws=options.draws, unlabelled=options.unlabelled,
        trained=tuple(folder for _, folder, _ in trained),
        output_dir=options.output_dir, output=options.output_dir / "table1.json",
    ).run()  # fmt: skip
    draw(trained, options)


def draw(trained: Sequence[tuple[Subject, Path, Config]], options: Comparison) -> None:
    """A picture of validation error by processor time, which other work does not change."""
    curves: dict[str, list[Curve]] = defaultdict(list)
    for subject, folder, config in trained:
        each = read(subject.folder / PACE)["seconds"]
        if curve := learning_curve(find_checkpoint(folder), config.epochs):
            seconds = [each * epoch for epoch in range(1, config.epochs + 1)]
            curves[curve_name(config)].append(curve._replace(seconds=seconds))
    if curves:
        title = f"Table 1's models on {options.data}, {options.labels:,} labels"
        picture = error_curves(curves, title, "seconds of training on one core")
        write_png(options.output_dir / "table1.png", picture)


def command() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    run(parse_args(Comparison))


if __name__ == "__main__":
    main(command)
