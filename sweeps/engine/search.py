"""Connects the study to Ray Tune: which trial comes next, what it reported, how it ended."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune.experiment import Experiment, Trial
from ray.tune.search import SearchAlgorithm

from ali.metrics import EPOCH
from sweeps.engine import ray_compat
from sweeps.engine.confirmation import CONFIRMS, is_new, next_to_confirm, next_to_race
from sweeps.engine.endings import (
    END_STATE,
    LAST,
    LOST,
    RETRIES,
    Ending,
    EndState,
    decided,
    first_try,
    lost_tries,
)
from sweeps.engine.retry import Retry
from sweeps.engine.scheduler import HISTORY, EarlyStopping
from sweeps.engine.storage import list_checkpoints
from sweeps.engine.study import CONFIG, Study, Suggest, trial_id


class StudySearch(SearchAlgorithm):
    """Feeds Tune from a `Study`: first the trials that the study holds already, then new ones.

    A trial that an earlier driver ended since it lost too many workers is retried.

    A finished trial is handed to Tune as TERMINATED and costs nothing; an unfinished one resumes
    from its newest checkpoint under the id it had.
    """

    def __init__(
        self,
        study: Study,
        suggest: Suggest,
        scheduler: EarlyStopping,
        num_trials: int,
        max_concurrent: int,
        epochs: int,
        confirm: int = 0,
        confirm_seeds: int = 0,
        race: int = 0,
        ask_storage: Retry | None = None,
    ) -> None:
        self._study = study
        self._suggest = suggest
        self._scheduler, self._objective = scheduler, scheduler.objective
        self._num_trials = num_trials
        self._max_concurrent = max_concurrent
        self._epochs = epochs
        self._confirm, self._confirm_seeds, self._race = confirm, confirm_seeds, race
        self._ask_storage = ask_storage or Retry("the storage", 0.0)
        self._live: set[str] = set()
        self._experiment: Experiment | None = None
        for trial in study.trials():  # one whose end was decided when the driver was killed
            if (ending := decided(trial)) is not None:
                if last := trial.user_attrs.get(LAST):
                    study.report(trial.number, *last)
                values = study.trial(trial.number).intermediate_values
                study.tell(trial.number, ending, values[max(values)] if values else None)
        for tries in lost_tries(study.trials()):
            study.retry(tries[-1].number)
        scheduler.replay(study.trials())
        self._retries = sum(
            RETRIES in t.user_attrs and t.state == TrialState.WAITING for t in study.trials()
        )
        self._backlog = self._begun()
        # Counts, since Tune asks is_finished at every event
        self._asked = sum(map(is_new, self._backlog))
        self._settled = not confirm and not race

    def __deepcopy__(self, memo: dict) -> StudySearch:
        return self  # Tune copies its arguments; there is one study

    def __getstate__(self) -> dict:
        return {}  # Tune pickles its arguments; a resume creates this object anew from the journal

    @property
    def total_samples(self) -> int:
        raced = self._num_trials // self._race if self._race else 0
        confirmed = self._confirm_seeds * (self._confirm + 1) * bool(self._confirm)
        return self._num_trials + raced + confirmed + self._retries

    def add_configurations(self, experiments: list[Experiment]) -> None:  # type: ignore[override]
        (self._experiment,) = experiments

    def is_finished(self) -> bool:
        asked = not self._backlog and not self._retries and self._asked >= self._num_trials
        return self._finished or (asked and self._settled)

    def _begun(self) -> list[FrozenTrial]:
        return [t for t in self._study.trials() if t.state != TrialState.WAITING]

    def next_trial(self) -> Trial | None:
        """The trial that Tune runs next; None: none at the moment."""
        if self._finished:
            return None
        if self._backlog and self._backlog[0].state.is_finished():
            return self.make_trial(self._backlog.pop(0))
        if len(self._live) >= self._max_concurrent:
            return None
        if self._backlog:
            return self.make_trial(self._study.complete_ask(self._backlog.pop(0), self._suggest))
        again = not self._settled and self._enqueue_again()
        if self._asked >= self._num_trials and not again and not self._retries:
            return None
        trial = self._study.ask(self._suggest)
        self._asked += is_new(trial)
        self._retries -= RETRIES in trial.user_attrs
        return self.make_trial(trial)

    def _enqueue_again(self) -> bool:
        """Enqueues a repetition if one is due (race or confirmation); returns whether it did."""
        trials = self._study.trials()
        if any(trial.state == TrialState.WAITING for trial in trials):  # left by a kill
            return True
        number = next_to_race(trials, self._race, self._confirm_seeds)
        if number is None and self._asked >= self._num_trials:
            if not all(t.state.is_finished() for t in trials if CONFIRMS not in t.user_attrs):
                return False
            number = next_to_confirm(trials, self._confirm, self._confirm_seeds)
            self._settled = number is None and all(t.state.is_finished() for t in trials)
        if number is None:
            return False
        self._study.enqueue_again(number)
        return True

    def make_trial(self, frozen: FrozenTrial) -> Trial:
        """The study's trial as one of Tune's, with its checkpoints; replays override this."""
        assert self._experiment is not None
        name, config = trial_id(frozen.number), frozen.user_attrs.get(CONFIG, {})
        trial = ray_compat.create_trial(self._experiment, name, config, frozen.params)
        if CONFIRMS in frozen.user_attrs:
            self._scheduler.never_stop.add(name)
        if frozen.state.is_finished():
            ray_compat.mark_finished(trial, self._last_result(frozen))
        else:
            self._live.add(name)
            filesystem, folder = ray_compat.trial_folder(trial)
            for one in self._tries(frozen):
                own = f"{folder.rpartition('/')[0]}/{trial_id(one.number)}"
                found = self._ask_storage(partial(list_checkpoints, filesystem, own))
                for checkpoint in found:
                    ray_compat.adopt_checkpoint(trial, checkpoint, self._last_result(one))
        return trial

    def _tries(self, frozen: FrozenTrial) -> list[FrozenTrial]:
        """All tries of the same trial, oldest first."""
        if RETRIES not in frozen.user_attrs:
            return [frozen]
        return [t for t in self._study.trials() if first_try(t) == first_try(frozen)]

    def _last_result(self, frozen: FrozenTrial) -> dict[str, Any]:
        if not frozen.intermediate_values:
            return {}
        epoch, value = max(frozen.intermediate_values.items())
        return {EPOCH: epoch, self._objective: value, "training_iteration": epoch}

    def on_trial_complete(
        self, trial_id: str, result: dict | None = None, error: bool = False
    ) -> None:
        """Records in the study that Tune has ended a trial."""
        self._live.discard(trial_id)
        result = result or {}
        ending = self._ending(trial_id, result, error)
        self._study.tell(int(trial_id), ending, result.get(self._objective))

    def _ending(self, trial_id: str, result: dict, error: bool) -> Ending:
        if error:
            return self._scheduler.endings.get(trial_id, LOST)
        if own := Ending.from_result(result):
            return own
        epoch, value = result.get(EPOCH, 0), result.get(self._objective)
        if trial_id in self._scheduler.endings and epoch < self._epochs:
            return self._scheduler.endings[trial_id]
        if epoch >= self._epochs and value is not None and math.isfinite(value):
            reason = f"{self._objective} {value:.4f} after epoch {epoch}"
            return Ending(EndState.COMPLETED, reason)
        reason = f"ended without a {self._objective} at its full budget"
        return Ending(EndState.FAILED, reason)


class StudyRecorder(tune.Callback):
    """Writes each value that a trial reports to the study, once, and that it is to be stopped.

    Tune calls it right after the scheduler has decided and before it acts on the decision, so the
    study has every value that led to an action. Until a stopped trial has ended, its last
    checkpoint is saved: a driver may be killed meanwhile.
    """

    def __init__(self, study: Study, scheduler: EarlyStopping) -> None:
        self._study, self._scheduler = study, scheduler

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its arguments; a resume creates this object anew

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict, **_: Any
    ) -> None:
        number = int(trial.trial_id)
        # A restored trial reports its past values: if the driver's machine was lost, and the end of
        # the journal with it, only the trial has them.
        for epoch, value in result.get(HISTORY, ()):
            self._study.report(number, int(epoch), float(value))
        objective, last = self._scheduler.objective, None
        if objective in result and END_STATE not in result:
            last = int(result[EPOCH]), float(result[objective])
        if (ending := self._scheduler.endings.get(trial.trial_id)) is not None:
            self._study.decide(number, ending, last)
        if last is not None:
            self._study.report(number, *last)
