"""The search: an Optuna study that is the sweep's memory, its face towards Ray Tune, and ASHA.

The study's journal is the one record of a sweep that a resume trusts. Tune's table of trials, the
scheduler's rungs and the end states in MLflow are made from it again, so a driver may be killed
between any two of its writes.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.tune.execution.experiment_state import _ExperimentCheckpointManager
from ray.tune.experiment import Experiment, Trial
from ray.tune.experiment.config_parser import _create_trial_from_spec, _make_parser
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.schedulers.async_hyperband import _Bracket
from ray.tune.search import SearchAlgorithm

from ali.metrics import EPOCH
from sweeps.engine.space import AS_PRINTED, Point
from sweeps.engine.storage import checkpoints
from sweeps.engine.tracking import (
    COMPLETED,
    CONFIG,
    END,
    FAILED,
    HISTORY,
    OUT_OF_MEMORY,
    REASON,
    STOPPED,
)

log = logging.getLogger(__name__)

_STATE = {COMPLETED: TrialState.COMPLETE, STOPPED: TrialState.PRUNED}


def trial_id(number: int) -> str:
    """Name of a trial in Tune, in MLflow and on disk: its number in the study."""
    return f"{number:05d}"


class Study:
    """An Optuna study in a journal file; doing a write twice is harmless."""

    def __init__(self, journal: Path, name: str, seed: int, startup_trials: int = 10) -> None:
        _mend(journal)
        self._storage: BaseStorage = JournalStorage(JournalFileBackend(str(journal)))
        self._seed = seed
        self._startup_trials = startup_trials
        self._study = optuna.create_study(
            study_name=name,
            storage=self._storage,
            direction="minimize",
            pruner=optuna.pruners.NopPruner(),  # ASHA alone stops trials
            load_if_exists=True,
        )

    @property
    def records(self) -> optuna.Study:
        """The study itself, to read."""
        return self._study

    def trials(self) -> list[FrozenTrial]:
        """All trials by number: takes longer the more there are; see `trial`."""
        return self._study.get_trials(deepcopy=False)

    def trial(self, number: int) -> FrozenTrial:
        """One trial, as fast as if there were no others."""
        study = self._study._study_id
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(study, number)
        return self._storage.get_trial(trial_id)

    def ask(self, suggest: Callable[[optuna.Trial], dict[str, Any]]) -> FrozenTrial:
        """A new trial whose user attribute CONFIG holds what `suggest` made of it."""
        self._seed_sampler(len(self.trials()))
        return self._configure(self._study.ask(), suggest)

    def complete_ask(
        self, trial: FrozenTrial, suggest: Callable[[optuna.Trial], dict[str, Any]]
    ) -> FrozenTrial:
        """Finishes an `ask` that a kill cut short: parameters already drawn stay as they are."""
        if CONFIG in trial.user_attrs:
            return trial
        self._seed_sampler(trial.number)
        return self._configure(optuna.Trial(self._study, trial._trial_id), suggest)

    def _configure(
        self, trial: optuna.Trial, suggest: Callable[[optuna.Trial], dict[str, Any]]
    ) -> FrozenTrial:
        trial.set_user_attr(CONFIG, suggest(trial))
        return self._storage.get_trial(trial._trial_id)

    def enqueue(self, point: Point) -> None:
        """Puts a known point at the head of a new study."""
        attributes = {AS_PRINTED: list(point.as_printed)}
        self._study.enqueue_trial(point.params, user_attrs=attributes, skip_if_exists=True)

    def report(self, number: int, epoch: int, value: float) -> None:
        """Records a trial's value after an epoch, once; non-finite values are not recorded."""
        trial = self.trial(number)
        if trial.state.is_finished() or epoch in trial.intermediate_values:
            return
        if math.isfinite(value):
            self._storage.set_trial_intermediate_value(trial._trial_id, epoch, value)

    def tell(self, number: int, end: str, reason: str, value: float | None) -> None:
        """Ends a trial: COMPLETE with its value, PRUNED when stopped before that, or FAIL."""
        trial = self.trial(number)
        if trial.state.is_finished():
            return
        self._storage.set_trial_user_attr(trial._trial_id, END, end)
        self._storage.set_trial_user_attr(trial._trial_id, REASON, reason)
        state = _STATE.get(end, TrialState.FAIL)
        values = [value] if state == TrialState.COMPLETE and value is not None else None
        self._study.tell(number, values, state)

    def _seed_sampler(self, number: int) -> None:
        # Seeded by the trial's number and not once, so that a search that was interrupted goes on
        # as it would have, and one with a concurrency of 1 can be repeated.
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        self._study.sampler = optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=self._startup_trials,
            multivariate=True,
            group=True,  # the space is conditional
            constant_liar=True,  # trials run side by side
        )


def read(journal: Path, name: str) -> optuna.Study:
    """A sweep's study to look at, which a driver may be writing: nothing is mended or added."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(journal)))
    return optuna.load_study(study_name=name, storage=storage)


def _mend(journal: Path) -> None:
    """Removes what a killed driver may leave: its lock and half a last line.

    Only called while this process holds the sweep's own lock.
    """
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    if not journal.exists():
        return
    with journal.open("rb+") as file:
        data = file.read()
        if data and not data.endswith(b"\n"):
            file.truncate(data.rfind(b"\n") + 1)


class _Rungs(_Bracket):
    """Stops nobody at a rung before η trials have reached it: of fewer there is no best 1/η.

    Ray's own stops the second trial of a sweep for being worse than the first.
    """

    def cutoff(self, recorded: dict[str, float]) -> float | None:
        """What a trial must reach beside those recorded; None: nothing."""
        if len(recorded) + 1 < self.rf:
            return None
        return super().cutoff(recorded)  # type: ignore[return-value]


class Asha(AsyncHyperBandScheduler):
    """Asynchronous successive halving (arXiv 1810.05934) that survives a resume and a NaN.

    Ray's scheduler keeps its rungs in memory only, and `nan < cutoff` never stops a trial. Here a
    value is in the study before anything is decided on it, the rungs are filled again from there,
    and why a trial was stopped is kept in `reasons`. What is minimised is the metric `objective`.
    """

    def __init__(
        self,
        objective: str,
        epochs: int,
        grace_epochs: int,
        reduction_factor: float,
        study: Study | None = None,
    ) -> None:
        grace_epochs = min(grace_epochs, epochs)
        super().__init__(
            time_attr=EPOCH,
            max_t=epochs,
            grace_period=grace_epochs,
            reduction_factor=reduction_factor,
        )
        self._brackets = [_Rungs(grace_epochs, epochs, reduction_factor, s=0)]
        self.objective = objective
        self._study = study
        self.reasons: dict[str, str] = {}
        self._doomed: dict[str, str] = {}

    def replay(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """Fills the rungs with what earlier drivers of this sweep have seen.

        Returns the unfinished trials that were to be stopped when the driver was: their last value
        is below the cut, and nobody has told them.
        """
        stopped = []
        for trial in sorted(trials, key=lambda t: not t.state.is_finished()):
            who: Any = SimpleNamespace(trial_id=trial_id(trial.number))
            decision = TrialScheduler.CONTINUE
            for epoch, value in sorted(trial.intermediate_values.items()):
                decision = self._brackets[0].on_result(who, epoch, -value)
            if decision == TrialScheduler.STOP and not trial.state.is_finished():
                stopped.append(trial)
                self.reasons[who.trial_id] = self._reason(who.trial_id, epoch, value)
        return stopped

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict) -> str:
        self._hear(trial, result)
        if END in result:
            return TrialScheduler.STOP
        value = result.get(self.objective)
        if value is None:
            return TrialScheduler.CONTINUE
        if self._study is not None:
            self._study.report(int(trial.trial_id), int(result[EPOCH]), float(value))
        decision = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP and result[EPOCH] < self._max_t:
            self.reasons[trial.trial_id] = self._reason(trial.trial_id, result[EPOCH], value)
        return decision

    def _hear(self, trial: Trial, result: dict) -> None:
        """What a restored trial tells of its past: a driver whose machine was lost, and the end of
        the journal with it, alone had heard some of it."""
        for epoch, value in result.get(HISTORY, ()):
            if self._study is not None:
                self._study.report(int(trial.trial_id), int(epoch), float(value))
            self._brackets[0].on_result(trial, epoch, -value)

    def _reason(self, trial_id: str, epoch: int, value: float) -> str:
        for milestone, recorded in self._brackets[0]._rungs:
            if epoch >= milestone:
                others = {name: reward for name, reward in recorded.items() if name != trial_id}
                cut = -float(self._brackets[0].cutoff(others))  # type: ignore[arg-type]
                return (
                    f"{self.objective} {value:.4f} after epoch {epoch}: "
                    f"above the cut of {cut:.4f} among {len(recorded)} trials"
                )
        return f"{self.objective} {value:.4f} after epoch {epoch}"

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict) -> None:
        self._hear(trial, result)
        self._trial_info.pop(trial.trial_id, None)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        self._trial_info.pop(trial.trial_id, None)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        # One that was to be stopped, and lost its process before it was, is not to go on.
        if trial.trial_id in self.reasons:
            self._doomed[trial.trial_id] = self.reasons[trial.trial_id]
        # A node that was lost is worth another try; a trial that outgrew its node is not. Ray may
        # kill another one than the one that grew, so each has a second try.
        error = trial.error_file and Path(trial.error_file)
        if error and error.exists():
            failures = error.read_text(errors="replace").split("Failure #")
            killed = ["running low on memory" in text for text in failures]  # by Ray's monitor
            if killed[-1] and sum(killed) > 1:
                self._doomed[trial.trial_id] = "its process was killed for lack of memory"

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        for trial in list(tune_controller.get_live_trials()):
            if trial.trial_id in self._doomed and trial.status == Trial.PENDING:
                self.reasons[trial.trial_id] = self._doomed.pop(trial.trial_id)
                tune_controller.stop_trial(trial)
                # Tune's table would say RUNNING of a trial that has no process to stop.
                tune_controller._mark_trial_to_checkpoint(trial)
        return super().choose_trial_to_run(tune_controller)


class StudySearch(SearchAlgorithm):
    """Feeds Tune from a `Study`: first the trials that the study holds already, then new ones.

    A finished trial is handed to Tune as TERMINATED and costs nothing; an unfinished one goes on
    from its newest checkpoint under the id it had.
    """

    def __init__(
        self,
        study: Study,
        suggest: Callable[[optuna.Trial], dict[str, Any]],
        asha: Asha,
        num_trials: int,
        max_concurrent: int,
        epochs: int,
    ) -> None:
        self._study = study
        self._suggest = suggest
        self._asha, self._objective = asha, asha.objective
        self._num_trials = num_trials
        self._max_concurrent = max_concurrent
        self._epochs = epochs
        self._live: set[str] = set()
        self._parser = _make_parser()
        self._experiment: Experiment | None = None
        for trial in asha.replay(self._begun()):
            value = trial.intermediate_values[max(trial.intermediate_values)]
            study.tell(trial.number, STOPPED, asha.reasons[trial_id(trial.number)], value)
        self._backlog = self._begun()
        self._asked = len(self._backlog)  # Tune asks is_finished at every event

    def __deepcopy__(self, memo: dict) -> StudySearch:
        return self  # Tune copies its arguments; there is one study

    def __getstate__(self) -> dict:
        return {}  # Tune pickles its arguments; a resume makes this object anew from the journal

    @property
    def total_samples(self) -> int:
        return self._num_trials

    def add_configurations(self, experiments: list[Experiment]) -> None:  # type: ignore[override]
        (self._experiment,) = experiments

    def is_finished(self) -> bool:
        return self._finished or (not self._backlog and self._asked >= self._num_trials)

    def _begun(self) -> list[FrozenTrial]:
        return [t for t in self._study.trials() if t.state != TrialState.WAITING]

    def next_trial(self) -> Trial | None:
        if self._finished:
            return None
        if self._backlog and self._backlog[0].state.is_finished():
            return self._make(self._backlog.pop(0))
        if len(self._live) >= self._max_concurrent:
            return None
        if self._backlog:
            return self._make(self._study.complete_ask(self._backlog.pop(0), self._suggest))
        if self._asked >= self._num_trials:
            return None
        self._asked += 1
        return self._make(self._study.ask(self._suggest))

    def _make(self, frozen: FrozenTrial) -> Trial:
        assert self._experiment is not None
        spec = copy.deepcopy(self._experiment.spec)
        name = trial_id(frozen.number)
        spec[CONFIG] = {**spec.get(CONFIG, {}), **frozen.user_attrs.get(CONFIG, {})}
        trial = _create_trial_from_spec(
            spec, self._parser, trial_id=name, evaluated_params=dict(frozen.params)
        )
        trial.init_local_path()
        result = self._last_result(frozen)
        if frozen.state.is_finished():
            trial.set_status(Trial.TERMINATED)
            trial.run_metadata.last_result = {**result, "done": True}
        else:
            self._live.add(name)
            of_trial = trial.storage.storage_filesystem, trial.storage.trial_fs_path
            for checkpoint in checkpoints(*of_trial):
                _adopt(trial, checkpoint, result)
        return trial

    def on_trial_complete(
        self, trial_id: str, result: dict | None = None, error: bool = False
    ) -> None:
        self._live.discard(trial_id)
        result = result or {}
        value = result.get(self._objective)
        if value is not None and END not in result:
            self._study.report(int(trial_id), int(result[EPOCH]), float(value))
        if error:
            end, reason = FAILED, "its process was lost more often than --max-failures allows"
        elif END in result:
            end, reason = result[END], result.get(REASON, "")
        elif trial_id in self._asha.reasons and result.get(EPOCH, 0) < self._epochs:
            reason = self._asha.reasons[trial_id]
            end = OUT_OF_MEMORY if "memory" in reason else STOPPED
        elif result.get(EPOCH, 0) >= self._epochs and value is not None and math.isfinite(value):
            end, reason = COMPLETED, f"{self._objective} {value:.4f} after epoch {result[EPOCH]}"
        else:
            end, reason = FAILED, f"ended without a {self._objective} at its full budget"
        self._study.tell(int(trial_id), end, reason, value)

    def _last_result(self, frozen: FrozenTrial) -> dict[str, Any]:
        if not frozen.intermediate_values:
            return {}
        epoch, value = max(frozen.intermediate_values.items())
        return {EPOCH: epoch, self._objective: value, "training_iteration": epoch}


def outlive_trials() -> None:
    """Has Tune take every error of Ray's own for that of a lost process.

    Tune knows two kinds, and ends the whole sweep at any other: at the one of a trial that Ray's
    memory monitor has killed.
    """
    failed = RayActorManager._actor_task_failed
    if failed.__module__ == __name__:
        return

    def told(self: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        known = isinstance(exception, RayActorError | RayTaskError)
        if isinstance(exception, RayError) and not known:
            exception = RayActorError(error_msg=str(exception))
        failed(self, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = told  # type: ignore[method-assign, assignment]


def snapshot_rarely() -> None:
    """Has Tune save its table of trials every ten seconds and at the end.

    Where checkpoints are deleted it saves it after every second one as well, whole each time: with
    many short trials most of the driver's time. A resume reads the study, not that table.
    """
    _ExperimentCheckpointManager.on_trial_checkpoint = (  # type: ignore[method-assign]
        lambda self, trial: None
    )


def _adopt(trial: Trial, checkpoint: str, result: dict[str, Any]) -> None:
    """Tells Tune of a checkpoint that an earlier driver's trial has written."""
    from ray.train._internal.checkpoint_manager import _TrainingResult

    assert trial.storage is not None
    trial.storage.current_checkpoint_index = int(checkpoint.rsplit("_", 1)[1]) - 1
    found = tune.Checkpoint(checkpoint, filesystem=trial.storage.storage_filesystem)
    trial.on_checkpoint(_TrainingResult(checkpoint=found, metrics=dict(result)))
