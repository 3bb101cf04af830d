"""A running sweep: one line per event, readable over ssh and in a log file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial
from ray import tune
from ray.tune.result import TIME_THIS_ITER_S

from ali.errors import UserError
from ali.metrics import EPOCH, IMAGES_PER_SECOND, format_losses
from ali.output import without_password
from sweeps.engine.cluster import TrialResources
from sweeps.engine.confirmation import intervals, is_new
from sweeps.engine.endings import END_STATE, LOST, Ending, EndState, ending_of, first_try
from sweeps.engine.formatting import format_line
from sweeps.engine.live import say
from sweeps.engine.mirror import JournalMirror
from sweeps.engine.options import Options
from sweeps.engine.retention import delete_checkpoints
from sweeps.engine.study import CONFIG, Study, best_trials, confirms_of, trial_id
from sweeps.engine.tracking import runs
from sweeps.engine.tracking.client import connect
from sweeps.engine.tracking.queue import AsyncLogQueue
from sweeps.engine.tracking.schema import TrackingContext
from sweeps.engine.tracking.search import is_gone

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from ray.tune.experiment import Trial

LOOK_SECONDS = 10.0  # between checks that MLflow still has the runs
BEST_NAMED = 10  # best trials that the sweep's run in MLflow names


class Progress(tune.Callback):
    """Prints what happens, writes end states to MLflow and limits the checkpoints on disk."""

    def __init__(
        self,
        options: Options,
        study: Study,
        to: TrackingContext,
        resources: TrialResources,
        mirror: JournalMirror,
        reopen: Callable[[], TrackingContext],
    ) -> None:
        self._options, self._study, self._to = options, study, to
        self._storage, self._mirror = mirror.storage, mirror
        self._reopen = reopen  # opens the sweep's run in MLflow, or recreates it
        self._running: dict[str, dict[str, Any]] = {}  # configurations by trial
        self._looked = time.monotonic()  # when MLflow was last checked
        self._client: MlflowClient | None = None
        self._queue = AsyncLogQueue(f"sweep {options.name}", options.outage_seconds)
        self._concurrent = resources.concurrent
        self._checkpoint_bytes = 0
        self.trial_seconds = 0.0  # total time between results, of all trials
        finished = [trial for trial in study.trials() if trial.state.is_finished()]
        self._ended_count = sum(map(is_new, finished))
        self.best: list[FrozenTrial] = best_trials(finished)[:BEST_NAMED]  # so far, best first
        self._intervals: dict[str, str] = {}  # in MLflow, by trial
        self._kept = finished  # ended trials that may have checkpoints
        self._announce(resources)

    def _announce(self, resources: TrialResources) -> None:
        options, to = self._options, self._to
        before = f" ({self._ended_count} of them ended before)" if self._ended_count else ""
        gpus = f" and {resources.gpus:g} GPU" if resources.gpus else ""
        say(
            f"sweep {options.name}: {options.num_trials} trials{before}, {resources.concurrent} at "
            f"a time with {resources.cpus} CPU{gpus} each; up to {options.epochs} epochs on "
            f"{options.data}, {to.direction[:-1]}ing {to.objective}"
        )
        data = options.config().data_dir or "its default folder"
        files = str(options.folder)
        if self._storage.remote:
            files += f", checkpoints in {self._storage.folder}"
        say(f"logs: {without_password(to.uri)}; files: {files}; data: {data}")

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its arguments; a resume creates this object anew

    def get_state(self) -> None:
        return None

    def close(self, timeout: float | None = None) -> None:
        """Waits until MLflow has every end state."""
        self._queue.close(timeout)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        self._mirror.now()  # the copied journal needs the trial before its first checkpoint
        config = self._running[trial.trial_id] = trial.config
        self._log(lambda client: runs.open_trial(client, self._to, trial.trial_id, config))
        verb = "resumes" if trial.checkpoint else "starts"
        again = self._continued(self._study.trial(int(trial.trial_id)))
        say(f"trial {trial.trial_id} {verb}: {format_line(config)}{again}")

    def _continued(self, trial: FrozenTrial) -> str:
        first = first_try(trial)
        return f" [continues {trial_id(first)}]" if first != trial.number else ""

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict, **_: Any
    ) -> None:
        self.trial_seconds += result.get(TIME_THIS_ITER_S, 0.0)
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._looked, running = time.monotonic(), dict(self._running)
            self._log(lambda client: self._keep_open(client, running))
        if EPOCH not in result or END_STATE in result:
            return
        value = result.get(self._to.objective)
        shown = f"{self._to.objective} {value:.4f}" if value is not None else "not evaluated"
        if self.best:
            shown += f" (best {self.best[0].value:.4f})"
        say(
            f"trial {trial.trial_id} epoch {result[EPOCH]}/{self._options.epochs}: {shown}, "
            f"{format_losses(result)}, {result.get(IMAGES_PER_SECOND, 0):.0f} images/s"
        )

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **_: Any
    ) -> None:
        self._ended(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        self._ended(trial)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        say(f"trial {trial.trial_id}: worker lost; restarting from checkpoint")

    def on_checkpoint(
        self, iteration: int, trials: list[Trial], trial: Trial, checkpoint: Any, **_: Any
    ) -> None:
        if self._checkpoint_bytes:
            return
        try:
            for folder in self._storage.checkpoints(trial.trial_id)[-1:]:
                self._checkpoint_bytes = self._storage.size(folder)
        except (OSError, UserError):  # no storage: retry at the next checkpoint
            return
        # two of each running trial, a third while it is written, and one of each of the best
        at_most = 3 * self._concurrent + self._options.keep
        mib = self._checkpoint_bytes / 2**20
        say(
            f"checkpoints: {mib:.1f} MiB each, at most {at_most} at a time "
            f"({at_most * mib:.0f} MiB) in {self._storage.folder}"
        )

    def _ended(self, trial: Trial) -> None:
        frozen, name = self._study.trial(int(trial.trial_id)), trial.trial_id
        self._running.pop(name, None)
        again = confirms_of(frozen)
        ending = ending_of(frozen) or Ending(EndState.FAILED, "")
        counted = self._continued(frozen) + (f" [confirms {again}]" if again else "")
        if is_new(frozen):
            self._ended_count += 1
            counted = f" [{self._ended_count}/{self._options.num_trials} ended]"
        later = "; a resume tries it again" if ending == LOST else ""
        say(f"trial {name} {ending.state.value}: {ending.reason}{later}{counted}")
        config = frozen.user_attrs[CONFIG]
        self._log(
            lambda client: runs.end_trial(
                client, self._to, name, ending, config=config, confirms=again
            )
        )
        trials = self._study.trials()
        ranked = best_trials(trials)
        best = ranked[:BEST_NAMED]
        known = intervals(trials)
        texts = {trial_id(t.number): known[t.number] for t in best if t.number in known}
        self._log(lambda client: runs.set_intervals(client, self._to, texts, self._intervals))
        if best != self.best:
            self.best, ids = best, [trial_id(t.number) for t in best]
            self._log(lambda client: runs.set_best_trials(client, self._to, ids))
        keep = max(self._options.keep, self._options.confirm)
        self._kept.append(frozen)
        with contextlib.suppress(OSError, UserError):  # no storage: retry at the next end
            self._kept = delete_checkpoints(self._mirror, self._kept, ranked[:keep])

    def _keep_open(self, client: MlflowClient, running: dict[str, dict[str, Any]]) -> None:
        for name in runs.keep_open(client, self._to, running):
            say(
                f"trial {name}: its run in MLflow was deleted for good: it has a new one, to which "
                "it logs its metrics again; its pictures are lost"
            )

    def _log(self, record: Callable[[MlflowClient], object]) -> None:
        def deliver() -> None:
            self._client = self._client or connect(self._to.uri)
            try:
                record(self._client)
            except Exception as error:
                if not is_gone(error):
                    raise
                before, self._to = self._to.parent_run_id, self._reopen()
                if self._to.parent_run_id != before:
                    say("the sweep's run in MLflow was deleted for good: it has a new one")
                record(self._client)

        self._queue.put(deliver)
