"""The numbers that the figures of a sweep show, drawn by `interactive` and by `static`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial

from ali.metrics import RAW_PIXEL_ERROR, UNTRAINED_BN_ERROR, UNTRAINED_ERROR
from sweeps.engine.endings import EndState
from sweeps.engine.reporting.findings import NOT_ENDED, Findings
from sweeps.engine.reporting.records import Records

AXES = 8  # hyperparameters in parallel coordinates, at most
AGAIN = "another seed of a trial"
BASELINES = {
    RAW_PIXEL_ERROR: "raw pixels",
    UNTRAINED_ERROR: "untrained encoder",
    UNTRAINED_BN_ERROR: "untrained, batch norm has seen the data",
}


@dataclass(frozen=True)
class Style:
    """How the trials of one end are drawn: a colour of Okabe and Ito's and a marker of its own,
    by plotly's name and by matplotlib's, so that no difference is one of colour alone."""

    colour: str
    symbol: str
    marker: str
    dash: str = "solid"


STYLES = {
    EndState.COMPLETED.value: Style("#0072B2", "circle", "o"),
    AGAIN: Style("#56B4E9", "circle-open", "$\\circ$", "dash"),
    EndState.STOPPED_EARLY.value: Style("#E69F00", "square", "s"),
    EndState.DIVERGED.value: Style("#D55E00", "x", "X"),
    EndState.COLLAPSED.value: Style("#CC79A7", "diamond", "D"),
    EndState.OUT_OF_MEMORY.value: Style("#808080", "triangle-up", "^"),
    EndState.FAILED.value: Style("#808080", "cross", "P"),
    EndState.INTERRUPTED.value: Style("#808080", "triangle-down", "v"),
    NOT_ENDED: Style("#009E73", "triangle-right", ">", "dot"),
}
GOOD_TO_BAD = ((0.0, "#D55E00"), (1.0, "#9AA5B1"))  # seen on light and on dark
BEST = "#0072B2"  # the line of the best so far


@dataclass(frozen=True)
class Curve:
    """A trial: its objective by epoch, and how it ended (a key of STYLES)."""

    trial_id: str
    epochs: tuple[int, ...]
    values: tuple[float, ...]
    end: str
    reason: str
    confirms: str | None

    @property
    def last(self) -> float | None:
        return self.values[-1] if self.values else None


def curves(found: Findings) -> list[Curve]:
    """All trials that have begun, by number."""
    drawn = []
    for trial in sorted(found.trials, key=lambda trial: trial.trial_id):
        end = trial.ending.state.value if trial.ending else NOT_ENDED
        reason = trial.ending.reason if trial.ending else ""
        if trial.confirms and trial.complete:
            end = AGAIN
        epochs, values = tuple(trial.values), tuple(trial.values.values())
        drawn.append(Curve(trial.trial_id, epochs, values, end, reason, trial.confirms))
    return drawn


def groups(drawn: Sequence[Curve]) -> dict[str, list[Curve]]:
    """Curves by their end, in the order of STYLES."""
    known = {end: [curve for curve in drawn if curve.end == end] for end in STYLES}
    return {end: its for end, its in known.items() if its}


def best_so_far(found: Findings) -> list[tuple[int, float]]:
    """The best objective at full budget so far, by trial number."""
    steps: list[tuple[int, float]] = []
    for trial in sorted(found.complete, key=lambda trial: trial.trial_id):
        assert trial.value is not None
        before = [steps[-1][1]] if steps else []
        best = min([trial.value, *before], key=lambda value: found.sign * value)
        steps.append((int(trial.trial_id), best))
    return steps


def baselines(found: Findings) -> dict[str, float]:
    """Values of the objective without training, by baseline; none if it is computed from others."""
    known = found.parent.data.metrics if found.parent and not found.parts else {}
    return {label: known[name] for name, label in BASELINES.items() if name in known}


def value_range(found: Findings) -> tuple[float, float]:
    """The objective's axis: a trial that diverges must not flatten all others."""
    values = [v for trial in found.trials for v in trial.values.values() if math.isfinite(v)]
    values += baselines(found).values()
    if not values:
        return 0.0, 1.0
    losses = [found.sign * value for value in values]
    best, worst = min(losses), max(losses)
    typical = float(np.quantile(losses, 0.9))
    worst = min(worst, best + 3 * (typical - best)) if typical > best else worst
    room = 0.06 * (worst - best) or 0.05
    low, high = sorted([found.sign * (best - room), found.sign * (worst + room)])
    return low, high


@dataclass(frozen=True)
class Axis:
    """An axis of parallel coordinates: where each trial is on it, from 0 to 1, and its ticks."""

    name: str
    log: bool
    positions: tuple[float, ...]
    ticks: tuple[float, ...]
    labels: tuple[str, ...]

    @property
    def label(self) -> str:
        """Its name, short."""
        short = self.name.replace("one_minus_beta2", "1−β₂").replace("beta1", "β₁")
        return short.replace("_", " ")


ABSENT = -0.12  # where a trial is on the axis of a hyperparameter that it does not have


@dataclass(frozen=True)
class Parallel:
    """Hyperparameters of all trials with a value, the most important first."""

    trial_ids: tuple[str, ...]
    values: tuple[float, ...]
    axes: tuple[Axis, ...]
    left_out: int  # hyperparameters that vary but have no axis


def parallel(found: Findings) -> Parallel:
    """Trials at their last value, and the hyperparameters that matter most."""
    by_number = {trial.number: trial for trial in found.frozen}
    own = [t for t in found.trials if t.value is not None and t.confirms is None]
    drawn = [by_number[int(trial.trial_id)] for trial in own]
    shares = {share.name: share.value for share in found.importance.shares}
    names = list(dict.fromkeys(name for trial in drawn for name in trial.params))
    names.sort(key=lambda name: -shares.get(name, 0.0))
    axes = [axis for name in names if (axis := _axis(name, drawn))]
    values = tuple(float(trial.value or 0.0) for trial in own)
    ids = tuple(trial.trial_id for trial in own)
    return Parallel(ids, values, tuple(axes[:AXES]), max(0, len(axes) - AXES))


def _axis(name: str, trials: Sequence[FrozenTrial]) -> Axis | None:
    """None if all trials have the same value, or only one has any."""
    known = [trial.params.get(name) for trial in trials]
    values = [value for value in known if value is not None]
    if len({str(value) for value in values}) < 2:
        return None
    kind = next(t.distributions[name] for t in trials if name in t.distributions)
    log = bool(getattr(kind, "log", False))
    if isinstance(kind, CategoricalDistribution) or any(isinstance(v, bool | str) for v in values):
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        choices = [str(value) for value in sorted({*values}, key=None if numbers else str)]
        last = len(choices) - 1
        where: dict[Any, float] = {choice: i / last for i, choice in enumerate(choices)}
        ticks = [(where[choice], _choice(choice)) for choice in choices]
        positions = [ABSENT if v is None else where[str(v)] for v in known]
    else:
        scale = math.log10 if log else float
        low, high = scale(min(values)), scale(max(values))
        positions = [ABSENT if v is None else (scale(v) - low) / (high - low) for v in known]
        ticks = [((scale(v) - low) / (high - low), _number(v)) for v in _ticks(values, log)]
    if None in known:
        ticks.append((ABSENT, "–"))
    at, labels = zip(*ticks, strict=True)
    return Axis(name, log, tuple(positions), at, labels)


def _choice(text: str) -> str:
    return {"True": "yes", "False": "no"}.get(text, text)


def _number(value: float) -> str:
    return f"{value:.2g}".replace("e-0", "e-")


def _ticks(values: Sequence[float], log: bool) -> list[float]:
    low, high = min(values), max(values)
    if log:
        middle = (low * high) ** 0.5
        return [low, middle, high]
    return [low, (low + high) / 2, high]


@dataclass(frozen=True)
class Bar:
    """A trial in a slot, from one second of the sweep to another."""

    trial_id: str
    slot: int
    start: float
    end: float
    state: str  # a key of STYLES


def slot_bars(found: Findings, records: Records) -> list[Bar]:
    """When each slot was in use: a trial takes the first slot that is free."""
    ends = {curve.trial_id: curve.end for curve in curves(found)}
    spans = [
        (span, name)
        for name, run in found.by_id.items()
        if name in ends
        for span in records.spans(run)
    ]
    if not spans:
        return []
    spans.sort(key=lambda item: item[0].start)
    began, free, bars = spans[0][0].start, list[float](), list[Bar]()
    for span, name in spans:
        slot = next((i for i, since in enumerate(free) if since <= span.start + 0.5), len(free))
        free[slot : slot + 1] = [span.end]
        bars.append(Bar(name, slot, span.start - began, span.end - began, ends[name]))
    return bars


def time_unit(seconds: float) -> tuple[str, float]:
    """A unit of time that fits an axis, and its seconds."""
    known = (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
    return next(((name, size) for name, size in known if seconds >= 3 * size), known[-1])
