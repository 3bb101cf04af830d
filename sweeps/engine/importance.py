"""Which hyperparameters mattered in a sweep, as far as that can be told from chance.

PED-ANOVA (arXiv 2304.10255) names a most important hyperparameter even for random values. So
its shares are compared with those of the same trials with their values shuffled. A configuration
that ran with several seeds is one trial with their mean: its runs are not independent.
"""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, create_trial

from sweeps.engine.confirmation import CONFIRMS
from sweeps.engine.endings import first_try
from sweeps.engine.objective import sign

MIN_TRIALS = 12  # below that the best tenth is one trial
REPEATS = 50  # shuffles, and bootstrap samples


@dataclass(frozen=True)
class Share:
    """A hyperparameter's share of what is explained; low, high: 90 % bootstrap interval."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Importance:
    """The importance of hyperparameters in a sweep.

    Attributes:
        trials: how many it is computed from; repetitions count with the trial that they repeat.
        chance: the share that the largest one reaches in 95 of 100 sweeps without any influence.
        shares: all, largest first.
        why_none: why there are no shares, if there are none.
    """

    trials: int
    chance: float
    shares: tuple[Share, ...]
    why_none: str = ""

    @property
    def significant(self) -> tuple[Share, ...]:
        """Shares that exceed chance (5 % in all: the largest shuffled share is compared)."""
        return tuple(share for share in self.shares if share.value > self.chance)

    @property
    def trials_needed(self) -> int:
        """About how many trials the largest share needs to exceed chance, if it stays as large.

        Shares by chance fall as one over the number of trials.
        """
        return int(np.ceil(self.trials * self.chance / self.shares[0].value))


def importance(trials: Sequence[FrozenTrial], seed: int = 0) -> Importance:
    """Importance in trials with values, of the parameters that all of them have."""
    less = sign(trials)
    trials = _by_configuration(trials)
    values = less * np.array([trial.value for trial in trials])  # less is better
    if why := _why_none(trials, values):
        return Importance(len(trials), 1.0, (), why)
    rng = np.random.default_rng(seed)
    found = _shares(trials, values)
    largest = [max(_shares(trials, rng.permutation(values)).values()) for _ in range(REPEATS)]
    sampled: list[dict[str, float]] = []
    for _ in range(REPEATS):
        rows = rng.integers(0, len(trials), len(trials))
        if np.ptp(values[rows]) > 0:
            sampled.append(_shares([trials[row] for row in rows], values[rows]))
    shares = []
    for name, value in sorted(found.items(), key=lambda item: -item[1]):
        low, high = np.quantile([again.get(name, 0.0) for again in sampled], [0.05, 0.95])
        shares.append(Share(name, value, float(low), float(high)))
    return Importance(len(trials), float(np.quantile(largest, 0.95)), tuple(shares))


def _by_configuration(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """One trial for each configuration, with the median of its runs' values.

    A mean would have a good configuration with one diverged run as bad as the worst.
    """
    first = {trial.number: first_try(trial) for trial in trials}
    runs: dict[int, list[FrozenTrial]] = defaultdict(list)
    for trial in trials:
        number = trial.user_attrs.get(CONFIRMS, trial.number)
        runs[first.get(number, number)].append(trial)
    found = [copy.copy(its[0]) for its in runs.values()]
    for one, its in zip(found, runs.values(), strict=True):
        one.value = float(np.median([trial.value for trial in its]))
    return found


def _why_none(trials: Sequence[FrozenTrial], values: np.ndarray) -> str:
    """Why nothing can be said of importance; empty if something can."""
    if len(trials) < MIN_TRIALS:
        return f"{len(trials)} trials are too few to tell; it takes {MIN_TRIALS}"
    if np.ptp(values) == 0:
        return f"all {len(trials)} trials have the same value"
    shared = set.intersection(*(set(trial.params) for trial in trials))
    if len(shared) < 2:
        return f"of {', '.join(shared) or 'nothing'} alone there are no shares to compare"
    return ""


def _shares(trials: Sequence[FrozenTrial], values: np.ndarray) -> dict[str, float]:
    study = optuna.create_study()
    study.add_trials(
        [
            create_trial(params=t.params, distributions=t.distributions, value=float(value))
            for t, value in zip(trials, values, strict=True)
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PED-ANOVA is experimental
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
