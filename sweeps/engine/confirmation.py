"""More seeds for the best configurations: during the search (race), then to confirm them.

The best of many noisy values is mostly luck. So the most promising configurations are trained again
with other seeds. The objective to expect of one is estimated from all its runs and drawn towards
where the other configurations are, so that choosing the luckiest does not bias it
(sweeps/engine/estimate.py; benchmarks/search.py measures that). Everything is computed from the
study's trials, so a resume continues it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from sweeps.engine.endings import RETRIES, first_try, is_broken
from sweeps.engine.estimate import Estimate, estimate
from sweeps.engine.objective import sign

CONFIRMS = "confirms"  # user attribute of a trial: number of the one whose configuration it repeats
CONTROL = "control"  # user attribute of the trial at the paper's own point
MIN_FREEDOM = 2  # fewest runs beyond the first ones for an interval to say anything
DROPPED_BELOW = 0.05  # probability of being better than the leader
MIN_RUNS = 2  # before a configuration may be dropped
RACED = 4  # most promising configurations, which get more seeds during the search
LAST_PART = 5  # a run's last fifth of evaluations is averaged: each one is noisy


@dataclass(frozen=True)
class Confirmed:
    """A configuration and its runs with fresh seeds.

    Attributes:
        number: of the search's trial that has the configuration.
        values: the last objective of each run that ended, in order; one that diverged or collapsed
            counts as the worst run of the sweep that completed.
        levels: the same with each run's `level`.
        diverged: runs that did either.
        begun: runs that have begun, ended and failed ones included.
    """

    number: int
    values: tuple[float, ...]
    levels: tuple[float, ...]
    diverged: int
    begun: int

    @property
    def mean(self) -> float:
        """The values' mean; infinity without any."""
        return float(np.mean(self.values)) if self.values else float("inf")

    @property
    def std(self) -> float:
        """Between seeds; NaN with fewer than two."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else float("nan")


def is_new(trial: FrozenTrial) -> bool:
    """Whether it is one of the search's own, not another seed or a retry of one."""
    return CONFIRMS not in trial.user_attrs and RETRIES not in trial.user_attrs


def is_repetition(trial: FrozenTrial) -> bool:
    """Whether it is another seed of one, and not a retry of that."""
    return CONFIRMS in trial.user_attrs and RETRIES not in trial.user_attrs


def level(trial: FrozenTrial) -> float:
    """The mean objective over the last fifth of a trial's evaluations, one at least.

    It predicts where another seed ends better than the last value alone (benchmarks/README.md).
    """
    values = [trial.intermediate_values[epoch] for epoch in sorted(trial.intermediate_values)]
    last = values[-max(1, len(values) // LAST_PART) :]
    return sum(last) / len(last) if last else float(trial.value or 0.0)


def ranked_by_value(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The search's trials that completed their full budget, by their one value, best first.

    Among equal values (frequent in counts of modes), the first trial wins.
    """
    complete = [
        t
        for t in trials
        if t.state == TrialState.COMPLETE and t.value is not None and CONFIRMS not in t.user_attrs
    ]
    less = sign(complete)
    return sorted(complete, key=lambda t: (less * (t.value or 0.0), t.number))


def estimates(trials: Sequence[FrozenTrial]) -> dict[int, Estimate]:
    """What to expect of each configuration with a run that completed, by its trial's number.

    The best first; ties go to the better own value, then to the earlier trial. A run counts with
    its `level`; the mean difference from it to the last value, over repetitions where there are
    any, is added: only the search's trials that ended well so far have completed.
    """
    ranked = ranked_by_value(trials)
    own = {t.number: [level(t)] for t in ranked}
    again = {c.number: list(c.levels) for c in _fresh(trials) if c.levels}
    runs = {n: own.get(n, []) + again.get(n, []) for n in [*own, *(again.keys() - own.keys())]}
    repeated = [t for t in trials if CONFIRMS in t.user_attrs and t.state == TrialState.COMPLETE]
    drifts = [float(t.value or 0.0) - level(t) for t in repeated or ranked]
    drift = float(np.mean(drifts)) if drifts else 0.0
    found = estimate(runs, sign(trials) < 0)
    found = {number: replace(one, mean=one.mean + drift) for number, one in found.items()}
    return dict(sorted(found.items(), key=lambda item: item[1].loss))


def intervals(trials: Sequence[FrozenTrial]) -> dict[int, str]:
    """The 95 % interval of each configuration's mean as text, by its trial's number.

    Only those that say something.
    """
    found = {number: interval_text(one) for number, one in estimates(trials).items()}
    return {number: text for number, text in found.items() if text}


def interval_text(expected: Estimate) -> str:
    """The 95 % interval of a configuration's mean as text; empty if it says nothing."""
    low, high = expected.interval
    return f"{low:.4f} to {high:.4f}" if expected.freedom >= MIN_FREEDOM else ""


def ranking(trials: Sequence[FrozenTrial]) -> list[int]:
    """Numbers of the search's completed trials, the best expected first."""
    complete = {t.number for t in ranked_by_value(trials)}
    return [number for number in estimates(trials) if number in complete]


def worst_value(trials: Iterable[FrozenTrial]) -> float:
    """The worst value that any trial had; a trial that diverged counts with it."""
    trials = list(trials)
    worst = min if sign(trials) < 0 else max
    return worst((v for t in trials for v in t.intermediate_values.values()), default=0.0)


def confirmed(trials: Sequence[FrozenTrial]) -> list[Confirmed]:
    """The configurations that have runs with fresh seeds, the best expected first."""
    rank = {number: i for i, number in enumerate(estimates(trials))}
    return sorted(_fresh(trials), key=lambda c: (rank.get(c.number, len(rank)), c.number))


def _fresh(trials: Sequence[FrozenTrial]) -> list[Confirmed]:
    runs: dict[int, list[FrozenTrial]] = defaultdict(list)
    for trial in trials:
        if CONFIRMS in trial.user_attrs:
            runs[trial.user_attrs[CONFIRMS]].append(trial)
    known = [t for t in trials if t.state == TrialState.COMPLETE]
    # Not the worst value of any epoch: one run that goes far off would tell of nothing else.
    worst = min if sign(trials) < 0 else max
    at_worst = worst_value(trials)
    worst_end = worst((float(t.value or 0.0) for t in known), default=at_worst)
    worst_level = worst(map(level, known), default=at_worst)
    found = []
    for number, its in runs.items():
        diverged = [t for t in its if is_broken(t)]
        complete = [t for t in its if t.state == TrialState.COMPLETE]
        ended = sorted([*diverged, *complete], key=lambda t: t.number)
        values = tuple(worst_end if t in diverged else float(t.value or 0.0) for t in ended)
        levels = tuple(worst_level if t in diverged else level(t) for t in ended)
        begun = len({*map(first_try, its)})
        found.append(Confirmed(number, values, levels, len(diverged), begun))
    return found


def next_to_race(trials: Sequence[FrozenTrial], every: int, seeds: int) -> int | None:
    """The search's trial to train with another seed during the search; None: a new one.

    One repetition after `every` new configurations (0: none), once two have completed: the first
    of the RACED best expected that has begun fewer than `seeds` and has none running.
    """
    begun = [t for t in trials if t.state != TrialState.WAITING]
    again = list(filter(is_repetition, begun))
    if not every or len(begun) < len(trials) or not _is_due(begun, every):
        return None
    running = {t.user_attrs[CONFIRMS] for t in again if not t.state.is_finished()}
    counts = Counter(t.user_attrs[CONFIRMS] for t in again)
    order = ranking(trials)
    if len(order) < 2:
        return None
    return next((n for n in order[:RACED] if counts[n] < seeds and n not in running), None)


def _is_due(begun: Sequence[FrozenTrial], every: int) -> bool:
    """Whether the race is behind. Repetitions beyond its share are a confirmation's, after which
    a sweep went on with more trials."""
    new = again = 0
    for trial in sorted(begun, key=lambda t: t.number):
        new += is_new(trial)
        again += is_repetition(trial) and again < new // every
    return again < new // every


def controls(trials: Iterable[FrozenTrial]) -> list[int]:
    """Numbers of the trials at the paper's own point, the last try of each."""
    last: dict[int, int] = {}
    for trial in sorted(trials, key=lambda t: t.number):
        first = first_try(trial)
        if trial.user_attrs.get(CONTROL) or (first in last and CONFIRMS not in trial.user_attrs):
            last[first] = trial.number
    return list(last.values())


def next_to_confirm(trials: Sequence[FrozenTrial], count: int, seeds: int) -> int | None:
    """The search's trial to train with another seed; None: all is settled, or is running.

    It has the fewest runs, up to `seeds` each, among the search's `count` best and the paper's
    point (a control). One that is no longer likely to beat the leader gets no more runs; the
    race ends when only the leader is left.
    """
    if not count:
        return None
    last = max((t.number for t in trials if CONFIRMS not in t.user_attrs), default=0)
    chosen = ranking([t for t in trials if t.number <= last])[:count]  # when the search ended
    chosen += [number for number in controls(trials) if number not in chosen]
    known = {c.number: c for c in _fresh(trials)}
    found = [known.get(number, Confirmed(number, (), (), 0, 0)) for number in chosen]
    now = estimates(trials)
    open_ = [c for c in found if c.begun < seeds and not _settled(c, found, now)]
    return min(open_, key=lambda c: (c.begun, chosen.index(c.number))).number if open_ else None


def _settled(one: Confirmed, all_: Sequence[Confirmed], now: dict[int, Estimate]) -> bool:
    """Whether more runs of `one` would change nothing."""
    leader = min(all_, key=lambda c: now[c.number].loss if c.number in now else float("inf"))
    others = [c for c in all_ if c is not one]
    if one is leader:
        return bool(others) and all(_settled(c, all_, now) for c in others)
    enough = min(len(one.values), len(leader.values)) >= MIN_RUNS
    return enough and now[one.number].beats(now[leader.number]) < DROPPED_BELOW
