"""The searches that are replayed on a table: this project's, built as a driver does, and others."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import FrozenTrial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from ali.metrics import EPOCH
from benchmarks import blackbox
from benchmarks.learning_curves import TABLES
from benchmarks.replay import Choice, Curves, Decision, Method, TableSampler, key
from sweeps import Objective
from sweeps.engine import forest
from sweeps.engine.confirmation import estimates
from sweeps.engine.endings import Ending, EndState
from sweeps.engine.forest import Candidate
from sweeps.engine.options import SamplerName
from sweeps.engine.scheduler import EarlyStopping
from sweeps.engine.search import StudyRecorder, StudySearch
from sweeps.engine.space import suggest
from sweeps.engine.study import Study, best_trials, trial_id

SLOTS = 4  # trials at a time
RACE, SEEDS = 3, 4  # of the shipped sweeps: --race, --confirm-seeds
RANDOM_TRIALS = 64  # whose best is the target


class Rows:
    """A table's configurations as points of the search, and its curves."""

    def __init__(self, name: str, tables: Path, seen: Objective | None = None) -> None:
        self.table = TABLES[name]
        read = blackbox.read(tables / name).begun()
        self.curves = Curves(read, seen)
        self.points, self.configs = [], []
        self.distributions: dict[str, Any] = {}
        for record in read.hyperparameters.to_dict("records"):
            trial = optuna.trial.FixedTrial(record)
            self.configs.append(suggest(trial, self.table.space, self.table.base))
            self.points.append(trial.params)
            self.distributions |= trial.distributions

    def free(self, study: Study) -> list[Candidate]:
        """The rows that no trial of a study has."""
        used = {key(trial.params) for trial in study.trials()}
        return [
            Candidate(point, self.distributions, config)
            for point, config in zip(self.points, self.configs, strict=True)
            if key(point) not in used
        ]

    def sampler(self, inner: Any, rng: np.random.Generator) -> TableSampler:
        return TableSampler(inner, self.points, self.distributions, rng)

    def draw(self, trial: optuna.Trial) -> dict[str, Any]:
        return suggest(trial, self.table.space, self.table.base)


class RandomSearch(Method):
    """Random rows, each trained to the end; `keep`: the best so many after `part` of the budget.

    `noisy` False: each shows the mean over its seeds, what no search can know. It bounds what less
    noise alone, by whatever repetitions, could gain.
    """

    def __init__(
        self, rows: Rows, rng: np.random.Generator, folder: Path, keep: int = 0, part: float = 1,
        noisy: bool = True,
    ) -> None:  # fmt: skip
        self._rows = rng.permutation(len(rows.points)).tolist()
        self._trials = min(RANDOM_TRIALS, len(self._rows))
        self._full, self._keep = rows.curves.epochs, keep
        self._means = None if noisy else rows.curves.means
        self._epochs = round(part * self._full)
        self._early: dict[str, float] = {}
        self._resume: list[str] = []
        self._best: Choice | None = None
        self._row: dict[str, int] = {}

    def next(self) -> tuple[str, int] | None:
        if self._resume:
            trial = self._resume.pop(0)
            return trial, self._row[trial]
        if not self._rows or (self._keep and len(self._row) == self._trials):
            return None
        trial = str(len(self._row))
        self._row[trial] = self._rows.pop()
        return trial, self._row[trial]

    def report(self, trial: str, epoch: int, value: float) -> Decision:
        row = self._row[trial]
        if self._means is not None:
            value = float(self._means[row])
        if epoch == self._full and value < (self._best.mean if self._best else np.inf):
            self._best = Choice(row, value)
        if self._keep and (epoch == self._epochs or not np.isfinite(value)):
            if trial not in self._early:
                self._early[trial] = value if np.isfinite(value) else np.inf
            if len(self._early) == self._trials:
                self._resume = sorted(self._early, key=self._early.__getitem__)[: self._keep]
            return "pause"
        return "continue"

    def choice(self) -> Choice | None:
        return self._best


class _Search(StudySearch):
    """StudySearch with trials that no worker runs."""

    def make_trial(self, frozen: FrozenTrial) -> Any:
        name = trial_id(frozen.number)
        self._live.add(name)
        return SimpleNamespace(trial_id=name)


def shipped_scheduler(objective: str, epochs: int, grace_epochs: int) -> EarlyStopping:
    return EarlyStopping(objective, epochs, grace_epochs, reduction_factor=2)


class Shipped(Method):
    """This project's sweep, as the driver builds it."""

    def __init__(
        self, rows: Rows, rng: np.random.Generator, folder: Path, startup_trials: int = 10,
        points: int = 0, race: int = RACE, sampler: SamplerName = "forest",
        scheduler: Callable[..., EarlyStopping] = shipped_scheduler,
        told: Callable[[EndState], EndState] = lambda state: state,
    ) -> None:  # fmt: skip
        epochs, objective = rows.curves.epochs, rows.table.objective
        self._objective = objective

        def make(seed: int) -> TableSampler:
            inner = forest.sampler(sampler, seed, startup_trials, lambda _: rows.free(self._study))
            return rows.sampler(inner, rng)

        self._find = rows.sampler(None, rng)
        self._study = Study(
            folder / "journal", "replay", int(rng.integers(2**31)), make_sampler=make
        )
        for point in rows.table.points[:points]:
            self._study.enqueue(point(rows.table.base))
        self._scheduler = scheduler(objective, epochs, max(1, epochs // 10))
        self._told = told
        self._recorder = StudyRecorder(self._study, self._scheduler)
        self._search = _Search(
            self._study, rows.draw, self._scheduler, len(rows.points), SLOTS, epochs,
            confirm_seeds=SEEDS, race=race,
        )  # fmt: skip
        self._trials: dict[str, Any] = {}
        self._best: Choice | None = None

    def next(self) -> tuple[str, int] | None:
        trial = self._search.next_trial()
        if trial is None:
            return None
        self._trials[trial.trial_id] = trial
        return trial.trial_id, self._find.row(self._study.trial(int(trial.trial_id)).params)

    def report(self, trial: str, epoch: int, value: float) -> Decision:
        result: dict[str, Any] = {EPOCH: epoch, self._objective: value}
        if not np.isfinite(value):
            result = {**Ending(self._told(EndState.DIVERGED), "").to_result(), EPOCH: epoch}
        decision = self._scheduler.on_trial_result(None, self._trials[trial], result)
        self._recorder.on_trial_result(0, [], self._trials[trial], result)
        if decision == TrialScheduler.STOP:
            self._search.on_trial_complete(trial, result)
            self._best = self._announced()
            return "stop"
        return "continue"

    def _announced(self) -> Choice | None:
        """The best, with the mean to expect, and its interval once anything has run twice."""
        trials = self._study.trials()
        best = best_trials(trials)
        if not best:
            return None
        known = estimates(trials)[best[0].number]
        return Choice(self._find.row(best[0].params), known.mean, *known.interval)

    def choice(self) -> Choice | None:
        return self._best


class FixedRungs(EarlyStopping):
    """The cut of this project up to commit c5b0496: at a tenth of the budget, times 3, times 9.

    A trial continues if it is in the best third of those that reached this epoch before it.
    """

    def __init__(self, objective: str, epochs: int, grace_epochs: int) -> None:
        super().__init__(objective, epochs, grace_epochs, 3)
        rungs = [grace_epochs * 3**k for k in range(9)]
        self._values: dict[int, list[float]] = {rung: [] for rung in rungs if rung < epochs}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        value, epoch = result.get(self.objective), result[EPOCH]
        if value is not None and epoch in self._values:
            others = self._values[epoch]
            cut = len(others) >= 2 and value > np.percentile(others, 100 / 3)
            others.append(value)
            if cut:
                self.endings[trial.trial_id] = Ending(EndState.STOPPED_EARLY, "above the cut")
                return TrialScheduler.STOP
        ended = value is None or epoch >= self._epochs
        return TrialScheduler.STOP if ended else TrialScheduler.CONTINUE


class RayTune(Method):
    """Ray's ASHA with its defaults, on random points or on those of OptunaSearch (TPE)."""

    def __init__(
        self, rows: Rows, rng: np.random.Generator, folder: Path, optuna_search: bool
    ) -> None:
        self._full, self._objective = rows.curves.epochs, rows.table.objective
        seed = int(rng.integers(2**31))
        inner = TPESampler(seed=seed) if optuna_search else RandomSampler(seed=seed)
        self._sampler = rows.sampler(inner if optuna_search else None, rng)

        def space(trial: optuna.Trial) -> None:
            rows.draw(trial)

        self._search = OptunaSearch(
            space,
            metric=self._objective,
            mode="min",
            sampler=self._sampler,
        )
        self._asha = ASHAScheduler(
            time_attr="training_iteration", metric=self._objective, mode="min", max_t=self._full,
            grace_period=1, reduction_factor=4,
        )  # fmt: skip
        self._number = itertools.count()
        self._limit = len(rows.points)
        self._trials: dict[str, Any] = {}
        self._best: Choice | None = None

    def next(self) -> tuple[str, int] | None:
        number = next(self._number)
        if number >= self._limit:
            return None
        trial = str(number)
        self._search.suggest(trial)
        self._trials[trial] = SimpleNamespace(trial_id=trial)
        self._asha.on_trial_add(None, self._trials[trial])  # type: ignore[arg-type]
        return trial, self._row(trial)

    def _row(self, trial: str) -> int:
        return self._sampler.row(self._search._ot_trials[trial].params)

    def report(self, trial: str, epoch: int, value: float) -> Decision:
        result = {"training_iteration": epoch, self._objective: value}
        if not np.isfinite(value):
            self._search.on_trial_complete(trial, error=True)
            return "stop"
        self._search.on_trial_result(trial, result)
        if epoch == self._full and (self._best is None or value < self._best.mean):
            self._best = Choice(self._row(trial), value)
        decision = self._asha.on_trial_result(None, self._trials[trial], result)  # type: ignore[arg-type]
        if decision == TrialScheduler.STOP:
            self._search.on_trial_complete(trial, result)
            return "stop"
        return "continue"

    def choice(self) -> Choice | None:
        return self._best


ORACLE = "random, true means"
METHODS: dict[str, Callable[..., Method]] = {
    "random": RandomSearch,
    ORACLE: partial(RandomSearch, noisy=False),
    "top-4 after a third": partial(RandomSearch, keep=4, part=1 / 3),
    "Ray ASHA": partial(RayTune, optuna_search=False),
    "Ray Optuna ASHA": partial(RayTune, optuna_search=True),
    "c5b0496": partial(
        Shipped, race=0, sampler="tpe", scheduler=FixedRungs, told=lambda _: EndState.FAILED
    ),
    "no race": partial(Shipped, race=0),
    "TPE": partial(Shipped, sampler="tpe"),
    "shipped": Shipped,
}

# Known searches that this project is to beat.
BASELINES = ("random", "top-4 after a third", "Ray ASHA", "Ray Optuna ASHA", "c5b0496")
