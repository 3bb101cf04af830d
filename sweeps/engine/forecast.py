"""Early stopping by what the sweep itself has shown: which early values end among the best.

Without Ray. Successive halving (ASHA, arXiv 1810.05934) compares trials at fixed epochs, whether or
not a value there predicts the last one; in adversarial training an early one often does not.
Here the trials that reached their full budget are the evidence: a linear regression of their last
value on that after the same epoch predicts where another will end, and how surely. A trial is
stopped if it is unlikely to end among the best 1/η of them. Where early values predict nothing, the
prediction is as wide as the last values themselves, and no trial is stopped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

MIN_COMPLETED = 10  # trials at full budget before any is stopped
UNLIKELY = 0.02  # chance of ending among the best 1/η below which a trial is stopped
SMOOTH = 3  # evaluations that are averaged, since one is noisy: the last ones

Curve = dict[int, float]  # objective by epoch


@dataclass(frozen=True)
class Cut:
    """Why a trial is stopped.

    Attributes:
        epoch: the last one.
        value: the mean of its last SMOOTH values.
        target: where the best 1/η of the completed trials begin.
        chance: of ending at or below it.
        completed: trials that this is based on.
    """

    epoch: int
    value: float
    target: float
    chance: float
    completed: int


@dataclass
class Forecast:
    """A sweep's learning curves, and which trials continue; less is better.

    Attributes:
        max_epochs: full budget, at which no trial is stopped.
        grace_epochs: no trial is stopped before.
        reduction_factor: η.
    """

    max_epochs: int
    grace_epochs: int
    reduction_factor: float
    _curves: dict[str, Curve] = field(default_factory=dict)
    _completed: dict[str, Curve] = field(default_factory=dict)
    _levels: dict[str, dict[int, float]] = field(default_factory=dict)  # known ones, of completed

    def report(self, trial_id: str, epoch: int, value: float) -> Cut | None:
        """Records a trial's value after an epoch, and decides: None to continue."""
        self.record(trial_id, epoch, value)
        return self.judge(trial_id, epoch) if math.isfinite(value) else None

    def record(self, trial_id: str, epoch: int, value: float) -> None:
        """Records a trial's value after an epoch, once, if it is finite."""
        curve = self._curves.setdefault(trial_id, {})
        if not math.isfinite(value) or epoch in curve:
            return
        curve[epoch] = value
        self._levels.pop(trial_id, None)
        if epoch >= self.max_epochs:
            self._completed[trial_id] = curve

    def judge(self, trial_id: str, epoch: int) -> Cut | None:
        """Why a trial with a value after this epoch is to stop; None if it continues."""
        if epoch >= self.max_epochs:
            return None
        if epoch < self.grace_epochs or len(self._completed) < MIN_COMPLETED:
            return None
        curve = self._curves[trial_id]
        early = np.array([self._level(name, epoch) for name in self._completed])
        ends = np.array([self._level(name, self.max_epochs) for name in self._completed])
        here, target = _level(curve, epoch), float(np.quantile(ends, 1 / self.reduction_factor))
        chance = chance_below(target, here, early, ends)
        if chance >= UNLIKELY:
            return None
        return Cut(epoch, here, target, chance, len(ends))

    def _level(self, completed: str, epoch: int) -> float:
        known = self._levels.setdefault(completed, {})
        if epoch not in known:
            known[epoch] = _level(self._completed[completed], epoch)
        return known[epoch]


def _level(curve: Curve, epoch: int) -> float:
    """Mean of the last SMOOTH values up to an epoch; NaN if there are none."""
    values = [curve[e] for e in sorted(curve) if e <= epoch][-SMOOTH:]
    return sum(values) / len(values) if values else math.nan


def chance_below(target: float, here: float, early: np.ndarray, ends: np.ndarray) -> float:
    """Probability that a trial whose value is `here` ends at or below `target`.

    By least squares of `ends` (n,) on `early` (n,), with a slope of at least 0: Student's t of the
    prediction, n − 2 degrees of freedom. NaN among `early` are left out; 1 with fewer than three.
    """
    from scipy.stats import t

    known = np.isfinite(early)
    x, y, n = early[known], ends[known], int(known.sum())
    if n < 3:
        return 1.0
    gap, spread = here - x.mean(), float(((x - x.mean()) ** 2).sum())
    slope = max(0.0, float(((x - x.mean()) * (y - y.mean())).sum()) / spread) if spread else 0.0
    predicted = y.mean() + slope * gap
    residual = float(((y - y.mean() - slope * (x - x.mean())) ** 2).sum()) / (n - 2)
    error = math.sqrt(residual * (1 + 1 / n + (gap * gap / spread if spread else 0.0)))
    if error == 0:
        return float(predicted <= target)
    return float(t.cdf((target - predicted) / error, n - 2))
