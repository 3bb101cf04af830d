"""A sweep as it runs: a line an event, readable through ssh and in a log file; ends trials."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune.result import TIME_THIS_ITER_S

from ali.metrics import D_LOSS, EPOCH, G_LOSS, IMAGES_PER_SECOND
from sweeps.engine import tracking
from sweeps.engine.driver import Options, Share, prune
from sweeps.engine.search import Study
from sweeps.engine.storage import Mirror

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from ray.tune.experiment import Trial


class Progress(tune.Callback):
    """Prints what happens, writes end states to MLflow and keeps the disk bounded."""

    def __init__(
        self,
        options: Options,
        study: Study,
        to: tracking.Destination,
        share: Share,
        mirror: Mirror,
    ) -> None:
        self._options, self._study, self._to = options, study, to
        self._storage, self._mirror = mirror.storage, mirror
        self._client: MlflowClient | None = None
        self._courier = tracking.Courier(f"sweep {options.name}", options.outage_seconds)
        self._slots = share.concurrent
        self._checkpoint_bytes = 0
        self.trial_seconds = 0.0  # that trials spent between two results, together
        self._ended_trials, self._best = 0, math.inf
        self._kept: list[FrozenTrial] = []  # ended trials that may hold checkpoints
        for trial in study.trials():
            if trial.state.is_finished():
                self._count(trial)
        goes_on = f", {self._ended_trials} of them ended before" if self._ended_trials else ""
        gpus = f" and {share.gpus:g} GPU" if share.gpus else ""
        _say(
            f"sweep {options.name}: {options.num_trials} trials{goes_on}; {share.concurrent} at a "
            f"time, {share.cpus} CPU{gpus} each; up to {options.epochs} epochs on {options.data}, "
            f"for the least {to.objective}"
        )
        data = options.config().data_dir or "its default place"
        kept = (
            f"{options.folder}, checkpoints in {self._storage.folder}"
            if self._storage.remote
            else self._storage.folder
        )
        _say(f"logs to {tracking.without_password(to.uri)}; keeps {kept}; data from {data}")

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its arguments; a resume makes this object anew

    def get_state(self) -> None:
        return None

    def close(self) -> None:
        """Waits for MLflow to have taken every end state."""
        self._courier.close()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        self._mirror.now()  # its copy knows a trial before the trial's first checkpoint is there
        config = trial.config
        verb = "goes on" if trial.checkpoint else "starts"
        self._tell(lambda client: tracking.open_trial(client, self._to, trial.trial_id, config))
        shown = [f"lr {config['lr_d']:.1e}/{config['lr_g']:.1e}"]
        dropout = {part: config[f"dropout_{part}"] for part in ("x", "z", "xz")}
        drawn = [f"{p:.2f} {part}" for part, p in dropout.items() if p is not None]
        if drawn:
            shown.append("dropout " + " ".join(drawn))
        if config["bn_x"]:
            shown.append("D(x) batch norm " + "".join("01"[on] for on in config["bn_x"]))
        _say(f"trial {trial.trial_id} {verb}: {', '.join(shown)}")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict, **_: Any
    ) -> None:
        self.trial_seconds += result.get(TIME_THIS_ITER_S, 0.0)
        if EPOCH not in result or tracking.END in result:
            return
        value = result.get(self._to.objective)
        shown = f"{self._to.objective} {value:.4f}" if value is not None else "not evaluated"
        if self._best < math.inf:
            shown += f" (best {self._best:.4f})"
        losses = f"d {result.get(D_LOSS, 0):.3f} g {result.get(G_LOSS, 0):.3f}"
        speed = result.get(IMAGES_PER_SECOND, 0)
        _say(
            f"trial {trial.trial_id} epoch {result[EPOCH]}/{self._options.epochs}: {shown}, "
            f"{losses}, {speed:.0f} images/s"
        )

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **_: Any
    ) -> None:
        self._ended(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        self._ended(trial)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        _say(f"trial {trial.trial_id} lost its process: it goes on from its checkpoint")

    def on_checkpoint(
        self, iteration: int, trials: list[Trial], trial: Trial, checkpoint: Any, **_: Any
    ) -> None:
        if self._checkpoint_bytes:
            return
        for folder in self._storage.checkpoints(trial.trial_id)[-1:]:
            self._checkpoint_bytes = self._storage.size(folder)
        # two of each running trial, a third while it is written, and one of each of the best
        at_most = 3 * self._slots + self._options.keep
        mib = self._checkpoint_bytes / 2**20
        _say(
            f"checkpoints: {mib:.1f} MiB each, at most {at_most} at a time "
            f"({at_most * mib:.0f} MiB) in {self._storage.folder}"
        )

    def _ended(self, trial: Trial) -> None:
        frozen = self._study.trial(int(trial.trial_id))
        self._count(frozen)
        end = frozen.user_attrs.get(tracking.END, tracking.FAILED)
        reason = frozen.user_attrs.get(tracking.REASON, "")
        counted = f"[{self._ended_trials}/{self._options.num_trials} ended]"
        _say(f"trial {trial.trial_id} {end}: {reason} {counted}")
        config, name = frozen.user_attrs[tracking.CONFIG], trial.trial_id
        self._tell(
            lambda client: tracking.end_trial(client, self._to, name, end, reason, config=config)
        )
        self._kept = prune(self._storage, self._kept, self._options.keep)

    def _count(self, trial: FrozenTrial) -> None:
        self._ended_trials += 1
        self._kept.append(trial)
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            self._best = min(self._best, trial.value)

    def _tell(self, record: Callable[[MlflowClient], None]) -> None:
        def deliver() -> None:
            self._client = self._client or tracking.connect(self._to.uri)
            record(self._client)

        self._courier.put(deliver)


class Watch(tune.Callback):
    """Kills the process of a trial that gave no result for so many seconds: Tune then goes on from
    its checkpoint, as after any lost process."""

    _LONGEST_STEP = 60.0  # seconds that one step of Tune's loop counts for at most

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._clock, self._looked = 0.0, time.monotonic()
        self._heard: dict[Trial, float] = {}  # when a running trial last gave a result

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its arguments; a resume makes this object anew

    def on_step_end(self, iteration: int, trials: list[Trial], **_: Any) -> None:
        # The time that the driver itself stood still (Ctrl-Z) is no trial's silence.
        now = time.monotonic()
        self._clock += min(now - self._looked, self._LONGEST_STEP)
        self._looked = now
        for trial in [t for t, heard in self._heard.items() if self._clock - heard > self._seconds]:
            del self._heard[trial]
            if (actor := trial.temporary_state.ray_actor) is not None:
                _say(f"trial {trial.trial_id}: no result for {self._seconds:g} s (--hang-seconds)")
                ray.kill(actor)

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


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
