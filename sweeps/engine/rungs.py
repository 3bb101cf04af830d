"""Asynchronous successive halving (ASHA, arXiv 1810.05934, the variant that stops): its decisions.

Free of Ray. A rung is a number of epochs; a trial that reaches one is compared there with all that
were there before, and continues if it is among the best 1/η.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Cut:
    """Why a trial is stopped: `value` is above `cutoff`, the best 1/η of `trials` at this rung."""

    epoch: int
    value: float
    cutoff: float
    trials: int


@dataclass
class Rungs:
    """The rungs of a sweep and the values that trials had there; less is better.

    Attributes:
        max_epochs: full budget, at which no trial is stopped.
        grace_epochs: the first rung; the others are η times further each.
        reduction_factor: η.
    """

    max_epochs: int
    grace_epochs: int
    reduction_factor: float
    _values: dict[float, dict[str, float]] = field(default_factory=dict)  # by rung and trial

    def __post_init__(self) -> None:
        rung: float = min(self.grace_epochs, self.max_epochs)
        while rung <= self.max_epochs:
            self._values[rung] = {}
            rung *= self.reduction_factor

    def report(self, trial_id: str, epoch: int, value: float) -> Cut | None:
        """Records a trial's value after an epoch, and decides: None to continue.

        A trial is judged once a rung, by its first value at or past it. At a rung that fewer than η
        trials have reached there is no best 1/η yet, so none is stopped there.
        """
        reached = [rung for rung in self._values if epoch >= rung]
        if not reached or not math.isfinite(value):
            return None
        here = self._values[max(reached)]
        if trial_id in here:
            return None
        others = list(here.values())
        here[trial_id] = value
        if epoch >= self.max_epochs or len(here) < self.reduction_factor:
            return None
        cutoff = float(np.percentile(others, 100 / self.reduction_factor))
        return Cut(epoch, value, cutoff, len(here)) if value > cutoff else None
