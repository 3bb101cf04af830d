"""Replays searches on a table of learning curves: Tune's loop on a simulated clock.

A search sees what it would see live: a value per epoch, from several trials at a time, each with a
seed of its own. Its choice is judged by the seeds that it has not seen.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from ali.errors import UserError
from benchmarks.blackbox import Blackbox
from benchmarks.curve_statistics import variance
from sweeps import Objective

Decision = Literal["continue", "stop", "pause"]


@dataclass(frozen=True)
class Choice:
    """What a search would announce: a configuration, its mean objective and a 95 % interval."""

    row: int
    mean: float
    low: float = float("nan")
    high: float = float("nan")


class Method(ABC):
    """A search to replay. Rows are configurations of the table, trials are numbered by `next`."""

    @abstractmethod
    def next(self) -> tuple[str, int] | None:
        """(trial, row) to start, or to resume after a pause; None: none at the moment."""

    @abstractmethod
    def report(self, trial: str, epoch: int, value: float) -> Decision:
        """A trial's value after an epoch; NaN: it has diverged."""

    @abstractmethod
    def choice(self) -> Choice | None:
        """What it would announce now."""


@dataclass
class Trace:
    """One replay.

    Attributes:
        spent: epochs trained when the choice changed, increasing.
        clock: simulated seconds at these moments.
        truth: mean objective at full budget of what was chosen, over seeds that it has not used.
        expected: the same mean of what the search saw, which it announces: `truth`, unless it sees
            another objective.
        error: standard error of each of these: a table has few seeds.
        choices: what was chosen.
        stopped: rows with a trial that was stopped for good, and none that was completed.
    """

    spent: list[int] = field(default_factory=list)
    clock: list[float] = field(default_factory=list)
    truth: list[float] = field(default_factory=list)
    expected: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    stopped: set[int] = field(default_factory=set)


class Curves:
    """A table, as replays need it: objective and seconds of each run; missing seeds left out.

    `seen`: what searches see in place of the table's objective, which judges their choice. Raises
    UserError if some runs lack it: they would count as diverged.
    """

    def __init__(self, table: Blackbox, seen: Objective | None = None) -> None:
        self.table = table
        self.values = table.curves(table.metadata["objective"])  # (rows, seeds, epochs)
        self.seen = table.computed(seen) if seen else self.values
        if seen and (np.isfinite(self.values) & ~np.isfinite(self.seen)).any():
            raise UserError(f"--objective {seen.name}: some runs of the table have no such value")
        self.seconds = np.nan_to_num(table.curves("cpu_seconds"), nan=0.0)
        self.ran = np.isfinite(table.curves("diverged")[..., -1])  # (rows, seeds)
        self.ends, self.seen_ends = self._ends(self.values), self._ends(self.seen)
        self.means = np.nanmean(self.ends, axis=1)
        self.epochs = self.values.shape[2]

    def _ends(self, values: np.ndarray) -> np.ndarray:
        """(rows, seeds): last values; the worst of all where a run diverged; NaN: no such run."""
        ends = np.where(np.isfinite(values[..., -1]), values[..., -1], np.nanmax(values))
        return np.where(self.ran, ends, np.nan)

    @cached_property
    def spread(self) -> float:
        """Standard deviation of what searches see at the end between seeds, pooled over rows."""
        return variance(self.seen_ends)[0] ** 0.5

    @cached_property
    def tenth(self) -> set[int]:
        """The truly best tenth of the rows."""
        return set(np.argsort(self.means)[: len(self.means) // 10].tolist())


def simulate(
    method: Method, curves: Curves, rng: np.random.Generator, budget: int, slots: int
) -> Trace:
    """Runs `method` until it has trained `budget` epochs or asks for no more."""
    trace, spent, now = Trace(), 0, 0.0
    order = [rng.permutation(np.flatnonzero(ran)) for ran in curves.ran]
    seeds: dict[str, tuple[int, int]] = {}  # (row, seed) of each trial
    used: dict[int, set[int]] = {}
    epochs: dict[str, int] = {}
    completed: set[int] = set()
    running: list[tuple[float, str]] = []

    def start(trial: str) -> None:
        row, seed = seeds[trial]
        took = float(curves.seconds[row, seed, epochs[trial]])
        heapq.heappush(running, (now + took, trial))

    def fill() -> None:
        while len(running) < slots and (found := method.next()) is not None:
            trial, row = found
            if trial not in seeds:
                taken = used.setdefault(row, set())
                left = [seed for seed in order[row] if seed not in taken]
                seed = int(left[0] if left else rng.choice(order[row]))
                taken.add(seed)
                seeds[trial], epochs[trial] = (row, seed), 0
            start(trial)

    fill()
    while running and spent < budget:
        now, trial = heapq.heappop(running)
        row, seed = seeds[trial]
        value = float(curves.seen[row, seed, epochs[trial]])
        epochs[trial] += 1
        spent += 1
        decision = method.report(trial, epochs[trial], value)
        if epochs[trial] >= curves.epochs:
            completed.add(row)
        if decision == "stop" and epochs[trial] < curves.epochs and np.isfinite(value):
            trace.stopped.add(row)
        if decision == "continue" and epochs[trial] < curves.epochs and np.isfinite(value):
            start(trial)
        fill()
        chosen = method.choice()
        if chosen is not None and (not trace.choices or chosen != trace.choices[-1]):
            trace.spent.append(spent)
            trace.clock.append(now)
            trace.choices.append(chosen)
            fresh = [s for s in order[chosen.row] if s not in used[chosen.row]] or order[chosen.row]
            trace.truth.append(float(curves.ends[chosen.row, list(fresh)].mean()))
            trace.expected.append(float(curves.seen_ends[chosen.row, list(fresh)].mean()))
            trace.error.append(curves.spread / len(fresh) ** 0.5)
    trace.stopped -= completed
    return trace


class TableSampler(BaseSampler):
    """Confines another sampler to the rows of a table: each draw becomes the nearest unused row.

    Distances are Euclidean in the ranges of the space (log where they are), over the parameters
    that both have. Where the other sampler draws nothing, the row is drawn at random.
    """

    def __init__(
        self, inner: BaseSampler | None, points: list[dict[str, Any]],
        distributions: dict[str, BaseDistribution], rng: np.random.Generator, repeat: bool = False,
    ) -> None:  # fmt: skip
        self._inner, self._points, self._distributions = inner, points, distributions
        self._rng, self._repeat = rng, repeat
        self._index = {key(point): row for row, point in enumerate(points)}
        self._matrix = np.array([self._place(point) for point in points])

    def row(self, params: dict[str, Any]) -> int:
        """The row that a trial's parameters are."""
        return self._index[key(params)]

    def _place(self, point: dict[str, Any]) -> list[float]:
        """Each parameter in [0, 1]; NaN where the point has none."""
        return [_unit(self._distributions[n], point.get(n)) for n in self._distributions]

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if "fixed_params" in trial.system_attrs:  # a point that was enqueued
            return {}
        begun = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        used = {self._index[key(t.params)] for t in begun if key(t.params) in self._index}
        free = [row for row in range(len(self._points)) if row not in used]
        drawn = self._draw(study, trial)
        if not drawn:
            return dict(self._points[int(self._rng.choice(free))])
        gaps = self._matrix[free] - np.array(self._place(drawn))
        distance = np.nanmean(gaps**2, axis=1)
        return dict(self._points[free[int(np.argmin(distance))]])

    def _draw(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        if self._inner is None:
            return {}
        space = self._inner.infer_relative_search_space(study, trial)
        drawn = self._inner.sample_relative(study, trial, space)
        if drawn or space:
            return drawn
        return {
            name: self._inner.sample_independent(study, trial, name, distribution)
            for name, distribution in self._distributions.items()
        }

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:  # fmt: skip
        raise AssertionError(f"{param_name} is not in the table")


def key(params: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(params.items()))


def _unit(distribution: BaseDistribution, value: Any) -> float:
    if value is None:
        return float("nan")
    if not isinstance(distribution, FloatDistribution):
        return float(value)
    low, high = distribution.low, distribution.high
    if distribution.log:
        low, high, value = np.log(low), np.log(high), np.log(value)
    return float((value - low) / (high - low))


def regret(traces: Iterable[Trace], curves: Curves, grid: np.ndarray) -> np.ndarray:
    """(replays, len(grid)): regret of the choice after so many epochs; no choice: a random row."""
    none, best = float(np.nanmean(curves.means)), float(np.nanmin(curves.means))
    rows = []
    for trace in traces:
        at = np.searchsorted(trace.spent, grid, side="right") - 1
        truth = np.array([none, *trace.truth])[at + 1]
        rows.append(truth - best)
    return np.array(rows)
