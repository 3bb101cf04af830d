"""More seeds for the best configurations: while the search goes on (race), then to confirm them.

The best of many noisy values is mostly luck. So the most promising configurations are trained again
with other seeds. What is announced of one is computed from these fresh runs alone, since its first
run is what it was chosen for; which is best, from all of them. Everything is computed from the
study's trials, so that a resume goes on where it was.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from sweeps.engine.endings import is_broken

CONFIRMS = "confirms"  # user attribute of a trial: number of the one whose configuration it repeats
CONTROL = "control"  # user attribute of the trial at the paper's own point
DROPPED_BELOW = 0.05  # probability of being better than the leader
MIN_RUNS = 2  # before a configuration may be dropped
RACED = 4  # most promising configurations that get more seeds while the search goes on
PRIOR_RUNS = 1.0  # that the mean over configurations counts for: half of a run's deviation is luck


@dataclass(frozen=True)
class Confirmed:
    """A configuration and its runs with fresh seeds.

    Attributes:
        number: of the search's trial that has the configuration.
        values: the objective of each run that ended, in order; one that diverged or collapsed
            counts as the worst.
        diverged: how many did either.
        begun: how many have begun, those included that ended or failed.
    """

    number: int
    values: tuple[float, ...]
    diverged: int
    begun: int

    @property
    def mean(self) -> float:
        """Of the values; infinity if there is none."""
        return float(np.mean(self.values)) if self.values else float("inf")

    @property
    def std(self) -> float:
        """Between seeds; NaN with fewer than two."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the mean (Student's t); infinite with fewer than 2 values."""
        from scipy.stats import t

        if len(self.values) < 2:
            return float("-inf"), float("inf")
        half = t.ppf(0.975, len(self.values) - 1) * self.std / len(self.values) ** 0.5
        return self.mean - half, self.mean + half

    def beats(self, other: Confirmed) -> float:
        """Probability that its mean is the lower one (Welch's t); 0.5 where nothing is known."""
        from scipy.stats import ttest_ind

        if min(len(self.values), len(other.values)) < 2:
            return 0.5
        if np.ptp(self.values) == np.ptp(other.values) == 0:
            return 0.5 + 0.5 * np.sign(other.mean - self.mean)
        test = ttest_ind(self.values, other.values, equal_var=False, alternative="less")
        return float(1 - test.pvalue)


def ranked_by_value(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The search's trials that completed their full budget, by their one value, best first.

    Of equal values, which counts of modes often are, the first trial wins.
    """
    complete = (
        t
        for t in trials
        if t.state == TrialState.COMPLETE and t.value is not None and CONFIRMS not in t.user_attrs
    )
    return sorted(complete, key=lambda t: (t.value, t.number))


def expected(trials: Sequence[FrozenTrial]) -> dict[int, float]:
    """The objective to expect of each configuration that completed, by its trial's number.

    The best first; of equal ones that whose own value is lower, then the earlier.

    The mean over its runs, drawn towards that over all configurations as if PRIOR_RUNS of them had
    ended there: a single good value counts for half. Without fresh runs the order is that of the
    values.
    """
    own = ranked_by_value(trials)
    if not own:
        return {}
    first = {t.number: float(t.value or 0.0) for t in own}
    overall = float(np.mean([*first.values()]))
    again = {c.number: c.values for c in _fresh(trials)}
    found = {}
    for number, value in first.items():
        values = [value, *again.get(number, ())]
        found[number] = (sum(values) + PRIOR_RUNS * overall) / (len(values) + PRIOR_RUNS)
    return dict(sorted(found.items(), key=lambda item: item[1]))


def worst_value(trials: Iterable[FrozenTrial]) -> float:
    """The largest value that any of the trials had: what one counts with that diverged."""
    return max((v for t in trials for v in t.intermediate_values.values()), default=0.0)


def confirmed(trials: Sequence[FrozenTrial]) -> list[Confirmed]:
    """The configurations that have runs with fresh seeds, the best to expect first."""
    order = expected(trials)
    found = _fresh(trials)
    return sorted(found, key=lambda c: (order.get(c.number, float("inf")), c.number))


def _fresh(trials: Sequence[FrozenTrial]) -> list[Confirmed]:
    runs: dict[int, list[FrozenTrial]] = defaultdict(list)
    for trial in trials:
        if CONFIRMS in trial.user_attrs:
            runs[trial.user_attrs[CONFIRMS]].append(trial)
    worst = worst_value(trials)
    found = []
    for number, its in runs.items():
        diverged = [t for t in its if is_broken(t)]
        complete = [t for t in its if t.state == TrialState.COMPLETE]
        ended = sorted([*diverged, *complete], key=lambda t: t.number)
        values = tuple(worst if t in diverged else float(t.value or 0.0) for t in ended)
        found.append(Confirmed(number, values, len(diverged), len(its)))
    return found


def next_to_race(trials: Sequence[FrozenTrial], every: int, seeds: int) -> int | None:
    """The search's trial to train with another seed while the search goes on; None: a new one.

    One repetition after `every` new configurations (0: none), once two have completed: of the
    RACED best to expect the first that has begun fewer than `seeds` and has none running.
    """
    begun = [t for t in trials if t.state != TrialState.WAITING]
    again = [t for t in begun if CONFIRMS in t.user_attrs]
    if not every or len(begun) < len(trials) or len(again) >= (len(begun) - len(again)) // every:
        return None
    running = {t.user_attrs[CONFIRMS] for t in again if not t.state.is_finished()}
    counts = Counter(t.user_attrs[CONFIRMS] for t in again)
    order = expected(trials)
    if len(order) < 2:
        return None
    return next((n for n in list(order)[:RACED] if counts[n] < seeds and n not in running), None)


def next_to_confirm(trials: Sequence[FrozenTrial], count: int, seeds: int) -> int | None:
    """The search's trial to train with another seed; None: all is settled, or is running.

    Of the `count` best of the search, and the paper's point as a control, the one with the fewest
    runs, up to `seeds` each. One that is no longer likely to be better than the leader gets no
    more; the race ends when none but the leader is left.
    """
    if not count:
        return None
    last = max((t.number for t in trials if CONFIRMS not in t.user_attrs), default=0)
    order = expected([t for t in trials if t.number <= last])  # as it was when the search ended
    chosen = list(order)[:count]
    chosen += [t.number for t in trials if t.user_attrs.get(CONTROL) and t.number not in chosen]
    known = {c.number: c for c in _fresh(trials)}
    found = [known.get(number, Confirmed(number, (), 0, 0)) for number in chosen]
    open_ = [c for c in found if c.begun < seeds and not _settled(c, found)]
    return min(open_, key=lambda c: (c.begun, chosen.index(c.number))).number if open_ else None


def _settled(one: Confirmed, all_: Sequence[Confirmed]) -> bool:
    """Whether more runs of `one` would change nothing."""
    leader = min(all_, key=lambda c: c.mean)
    others = [c for c in all_ if c is not one]
    if one is leader:
        return bool(others) and all(_settled(c, all_) for c in others)
    enough = min(len(one.values), len(leader.values)) >= MIN_RUNS
    return enough and one.beats(leader) < DROPPED_BELOW
