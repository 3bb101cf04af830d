"""Trials that hang: no result for too long."""

from __future__ import annotations

import time
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from sweeps.engine import ray_compat
from sweeps.engine.live import say


class HangWatchdog(tune.Callback):
    """Kills the worker of a trial that gave no result for `seconds`; Tune then restarts the trial
    from its checkpoint, as after any lost worker."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._clock, self._looked = 0.0, time.monotonic()
        self._heard: dict[Trial, float] = {}  # when a running trial last gave a result

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its arguments; a resume creates this object anew

    def on_step_end(self, iteration: int, trials: list[Trial], **_: Any) -> None:
        # Time in which the driver itself was stopped (Ctrl-Z, a laptop's sleep) does not count: a
        # step of Tune's loop, which takes a second or less, counts for at most a quarter of the
        # limit, or a second.
        now = time.monotonic()
        self._clock += min(now - self._looked, max(1.0, self._seconds / 4))
        self._looked = now
        for trial in [t for t, heard in self._heard.items() if self._clock - heard > self._seconds]:
            del self._heard[trial]
            if ray_compat.kill_worker(trial):
                say(f"trial {trial.trial_id}: no result for {self._seconds:g} s (--hang-seconds)")

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        self._heard[trial] = self._clock

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict, **_: Any
    ) -> None:
        self._heard[trial] = self._clock

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **_: Any
    ) -> None:
        self._heard.pop(trial, None)

    on_trial_error = on_trial_recover = on_trial_complete
