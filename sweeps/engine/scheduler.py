"""Decides for Tune whether a trial continues, also after a resume and after a NaN."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from optuna.trial import FrozenTrial
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from ali.metrics import EPOCH
from sweeps.engine import ray_compat
from sweeps.engine.confirmation import CONFIRMS
from sweeps.engine.endings import END_STATE, Ending, EndState, first_try
from sweeps.engine.forecast import Cut, Forecast
from sweeps.engine.study import trial_id

HISTORY = "history"  # in a restored trial's first result: (epoch, objective) before its checkpoint
MEMORY_KILLS = 2  # kills by Ray's memory monitor without a new epoch that end a trial


class EarlyStopping(FIFOScheduler):
    """Stops trials that are unlikely to end among the best (`Forecast`); it records nothing.

    Ray's own schedulers keep what they know in memory only, never stop a trial whose value is NaN,
    and stop the second trial of a sweep for being worse than the first. Here the curves are read
    again from the study after a resume (`replay`), and `endings` says why a trial was stopped.
    An epoch is judged once: with later evidence, a resume would stop trials that went on from it.
    """

    def __init__(
        self,
        objective: str,
        epochs: int,
        grace_epochs: int,
        reduction_factor: float,
        maximize: bool = False,
    ) -> None:
        super().__init__()
        self.objective = objective
        self.endings: dict[str, Ending] = {}  # by id, of trials that were told to stop
        self._epochs = epochs
        self._sign = -1.0 if maximize else 1.0  # the forecast is of something to minimize
        self._forecast = Forecast(epochs, grace_epochs, reduction_factor)
        self.never_stop: set[str] = set()  # trials that confirm another: they run in full
        self._lost: set[str] = set()  # told to stop, but their worker was lost before that
        self._judged: dict[str, int] = {}  # furthest epoch of a trial after which it was judged
        self._reached: dict[str, int] = {}  # epoch of a trial's last result
        self._lost_at: dict[str, int] = {}  # furthest epoch of a trial whose worker was lost
        self._memory_kills: Counter[str] = Counter()  # of a trial since then

    def replay(self, trials: Iterable[FrozenTrial]) -> None:
        """Reads what earlier drivers of this sweep have seen, and judged."""
        own = [trial for trial in trials if CONFIRMS not in trial.user_attrs]
        furthest: Counter[int] = Counter()  # epoch, by first try
        for trial in own:
            first, curve = first_try(trial), trial.intermediate_values
            for epoch, value in curve.items():
                self._forecast.record(trial_id(trial.number), epoch, self._sign * value)
            furthest[first] = max(furthest[first], *curve, 0)
        self._judged |= {trial_id(t.number): furthest[first_try(t)] for t in own}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict) -> str:
        """Tune asks this after each result."""
        self._note_progress(trial, int(result.get(EPOCH, 0)))
        name, judged = trial.trial_id, trial.trial_id not in self.never_stop
        for epoch, value in result.get(HISTORY, ()):
            if judged:
                self._forecast.record(name, int(epoch), self._sign * value)
        if END_STATE in result:
            return TrialScheduler.STOP
        value = result.get(self.objective)
        if value is None:
            return TrialScheduler.CONTINUE
        epoch, loss = int(result[EPOCH]), self._sign * float(value)
        if judged and epoch <= self._judged.get(name, 0):  # trained again from a checkpoint
            self._forecast.record(name, epoch, loss)
        elif judged:
            self._judged[name] = epoch
            if (cut := self._forecast.report(name, epoch, loss)) is not None:
                self.endings[name] = self._ending(cut)
                return TrialScheduler.STOP
        return TrialScheduler.STOP if epoch >= self._epochs else TrialScheduler.CONTINUE

    def _note_progress(self, trial: Trial, epoch: int) -> None:
        """Once a trial has a new epoch, workers that it lost before do not count."""
        name = trial.trial_id
        self._reached[name] = epoch
        if epoch > self._lost_at.get(name, epoch):
            del self._lost_at[name], self._memory_kills[name]
            ray_compat.forget_failures(trial)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict) -> None:
        """Tune calls this with a trial's last result, and ignores the answer."""
        self.on_trial_result(tune_controller, trial, result)

    def _ending(self, cut: Cut) -> Ending:
        value, target = self._sign * cut.value, self._sign * cut.target
        side = "below" if self._sign > 0 else "above"
        reason = (
            f"{self.objective} {value:.4f} after epoch {cut.epoch}: its chance to end at or "
            f"{side} {target:.4f}, among the best 1 in {self._forecast.reduction_factor:g} of "
            f"{cut.completed} trials, is {cut.chance:.0%}"
        )
        return Ending(EndState.STOPPED_EARLY, reason)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Tune calls this when a trial's worker is lost."""
        name = trial.trial_id
        self._lost_at[name] = max(self._lost_at.get(name, 0), self._reached.get(name, 0))
        # A lost node is worth another try; a trial that outgrew its node is not. Ray may kill
        # another trial than the one that grew, so each has a second try.
        self._memory_kills[name] += ray_compat.memory_kills(trial) > 0
        if self._memory_kills[name] >= MEMORY_KILLS:
            reason = "its worker was killed for lack of memory"
            self.endings[name] = Ending(EndState.OUT_OF_MEMORY, reason)
        if name in self.endings:
            self._lost.add(name)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Tells Tune which trial is next."""
        if self._lost:
            for trial in ray_compat.pending_trials(tune_controller):
                if trial.trial_id in self._lost:
                    self._lost.remove(trial.trial_id)
                    ray_compat.stop_pending_trial(tune_controller, trial)
        return super().choose_trial_to_run(tune_controller)

    def debug_string(self) -> str:
        """A line for Tune's own output."""
        return f"early stopping on {self.objective}"
