"""One trial: an `Experiment` as a Ray Tune trainable that reports how it ended, and why."""

from __future__ import annotations

import functools
import json
import logging
import platform
import re
import subprocess
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.result import DONE

from ali.config import Config
from ali.errors import NonFiniteError, UserError
from ali.history import read_history, write_history
from ali.metrics import EPOCH, EVAL_SECONDS, TRAIN_SECONDS
from sweeps.engine import gpus, ray_compat
from sweeps.engine.endings import Ending, EndState
from sweeps.engine.experiment import Experiment, Metrics
from sweeps.engine.objective import Objective
from sweeps.engine.retry import AwayError, Retry, awaited
from sweeps.engine.scheduler import HISTORY
from sweeps.engine.storage import list_checkpoints
from sweeps.engine.tracking.schema import (
    CONFIG,
    DATA,
    TOTAL_CORE_SECONDS,
    TOTAL_EVAL_SECONDS,
    TOTAL_TRAIN_SECONDS,
    TrackingContext,
    config_text,
    parameters,
)
from sweeps.engine.tracking.trial_run import TrialRun

log = logging.getLogger(__name__)

METRIC_NAME = re.compile(r"[/\w.\- :]+")  # what MLflow takes
FLUSH_SECONDS = 30.0
SAVE_AFTER = 5.0  # times the duration of a failed checkpoint: the wait before the next one
CONFIG_FILE = "config.json"  # artifact of a run, for `python -m ali train --config`


@dataclass(frozen=True)
class TrialContext:
    """The inputs of every trial of a sweep: its experiment, where to log, its resources."""

    experiment: Experiment
    to: TrackingContext
    image_every: int
    threads: int
    gpus: float
    outage_seconds: float
    fingerprint: str  # of the data that all trials have
    data_dir: str | None  # the data's folder: a resume may change it after a trial was drawn
    objective: Objective | None = None  # adds its value to the metrics, if they lack it


class SweepTrial(tune.Trainable):
    """Tune's class interface: a step is an epoch.

    A worker runs one trial after the other; what they share (`_dataset`) is kept in between.
    """

    def setup(self, config: dict[str, Any], context: TrialContext) -> None:  # type: ignore[override]
        self._mps = gpus.join(context.gpus)
        context.experiment.set_threads(context.threads)
        self._context = context
        self._runs: list[TrialRun] = []  # of its trials, until all is delivered
        self._loaded: list[Any] = []  # the data set, once it is loaded
        self._begin(config)

    def _begin(self, config: dict[str, Any]) -> None:
        places = {"data_dir": self._context.data_dir}
        self._experiment_config = Config.from_dict({**config, **places})
        self._epochs: Iterator[tuple[Any, Metrics]] | None = None
        self._state: Any = None
        self._history: list[Metrics] = []  # of each epoch
        self._past_values: list[tuple[float, float]] = []  # of a checkpoint, for the next result
        self._opened: TrialRun | None = None
        self._next_save = 0.0  # on the monotonic clock
        self._unsaved: Exception | None = None  # why an own experiment's state cannot be saved

    @property
    def _dataset(self) -> Any:
        # Loaded by the first step and not in setup, where nothing would notice that the data's
        # folder hangs (HangWatchdog only watches trials that have started).
        if not self._loaded:
            experiment, expected = self._context.experiment, self._context.fingerprint
            # The driver has read it: a missing mount usually comes back.
            what, seconds = f"the data of trial {self.trial_id}", self._context.outage_seconds
            ask = Retry(what, seconds, _is_missing)
            try:
                dataset = ask(lambda: experiment.load_data(self._experiment_config))
            except AwayError as error:
                raise error.__cause__ or error from None
            if (found := experiment.fingerprint(dataset)) != expected:
                raise UserError(
                    f"the data has changed, or differs here (fingerprint {found}, not {expected})"
                )
            self._loaded.append(dataset)
        return self._loaded[0]

    @property
    def _run(self) -> TrialRun:
        if self._opened is None:
            config, context = self._experiment_config.to_dict(), self._context
            facts = {
                CONFIG: config_text(config),
                DATA: context.experiment.fingerprint(self._dataset),
                "threads": str(context.threads),
                **versions(),
                **context.experiment.facts(self._experiment_config),
            }
            if context.gpus:
                facts |= {"gpus": f"{context.gpus:g}", "mps": "yes" if self._mps else "no"}
            params = parameters(config, context.to.searched)
            self._opened = TrialRun(
                context.to, self.trial_id, params, context.outage_seconds, tags=facts
            )
            self._opened.text(json.dumps(config, indent=1), CONFIG_FILE)
            self._runs.append(self._opened)
        return self._opened

    def step(self) -> dict[str, Any]:
        """Trains an epoch. A trial that ends early returns how (`Ending`) in place of metrics."""
        history, self._past_values = self._past_values, []
        try:
            if self._unsaved is not None:
                raise self._unsaved
            broken = self._broken_down()
            result = self._end(broken.state, broken.reason) if broken else self._epoch()
        except NonFiniteError as error:
            result = self._end(EndState.DIVERGED, str(error))
        except Exception as error:
            result = self._failed(error)
        return {**result, HISTORY: history} if history else result

    def _broken_down(self) -> Ending | None:
        """Why no further epoch is worth its time; the last one's result has been reported."""
        if not self._history or self._history[-1][EPOCH] >= self._experiment_config.epochs:
            return None
        return self._context.experiment.breakdown(self._history)

    def _failed(self, error: Exception) -> dict[str, Any]:
        # By its name, since an experiment may do without torch: on a GPU it is torch's own class.
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return self._end(EndState.OUT_OF_MEMORY, str(error) or "MemoryError")
        if type(error).__name__ == "AcceleratorError":  # CUDA does not work in this process again,
            raise error  # and it may have been a neighbour's fault: as if its worker were lost
        # The same code with the same seed would fail again: the trial ends here, and is not
        # restarted, unlike one that lost its node.
        if self._opened is not None:
            self._opened.text(traceback.format_exc(), "traceback.txt")
            self._opened.queue.flush_files(FLUSH_SECONDS)  # the next trial may kill this process
        return self._end(EndState.FAILED, f"{type(error).__name__}: {error}")

    def _epoch(self) -> dict[str, Any]:
        run, config, experiment = self._run, self._experiment_config, self._context.experiment
        if self._epochs is None:
            self._check_gpu_memory()
            start = self._new_state() if self._state is None else self._state
            self._epochs = experiment.run(config, self._dataset, start)
        try:
            self._state, metrics = next(self._epochs)
        except StopIteration:  # restored after its last epoch: the same result again
            return {**self._history[-1], DONE: True}
        metrics = checked(metrics)
        if self._context.objective:
            self._context.objective.add_to(metrics, last=metrics[EPOCH] >= config.epochs)
        self._add_totals(metrics)
        self._history.append(metrics)
        done = metrics[EPOCH] >= config.epochs
        images = {}
        if done or metrics[EPOCH] % self._context.image_every == 0:
            images = experiment.pictures(self._state, config, self._dataset)
        run.epoch(metrics, images)
        if done:  # MLflow gets a final result before the search does
            run.queue.flush(FLUSH_SECONDS)
        return {**metrics, DONE: done}

    def _check_gpu_memory(self) -> None:
        """Raises UserError if the trial's part of a GPU has too little memory for it."""
        part, experiment = self._context.gpus, self._context.experiment
        if not 0 < part < 1:
            return
        if (need := experiment.gpu_memory(self._experiment_config, self._dataset)) is None:
            return
        import torch

        if not torch.cuda.is_available():
            return
        has = part * torch.cuda.get_device_properties(0).total_memory
        if need > has:
            raise UserError(
                f"a trial takes some {need / 2**30:.1f} GiB of a GPU's memory, and its part, "
                f"{part:.2g}, has {has / 2**30:.1f} GiB: raise --gpus-per-trial, or lower "
                "--batch-size"
            )

    def _new_state(self) -> Any | None:
        """A new state with its pictures in MLflow, where the experiment makes one apart."""
        experiment, config = self._context.experiment, self._experiment_config
        state = experiment.initial_state(config, self._dataset)
        if state is not None and (images := experiment.pictures(state, config, self._dataset)):
            self._run.pictures(0, images)
        return state

    def _add_totals(self, metrics: Metrics) -> None:
        """Adds the seconds of the trial so far, its restarts included."""
        before = self._history[-1] if self._history else {}
        train, evaluation = metrics.get(TRAIN_SECONDS, 0.0), metrics.get(EVAL_SECONDS, 0.0)
        for name, seconds in {
            TOTAL_TRAIN_SECONDS: train,
            TOTAL_EVAL_SECONDS: evaluation,
            TOTAL_CORE_SECONDS: (train + evaluation) * self._context.threads,
        }.items():
            metrics[name] = before.get(name, 0.0) + seconds

    def _end(self, state: EndState, reason: str) -> dict[str, Any]:
        if self._opened is not None:
            self._opened.queue.flush(FLUSH_SECONDS)
        return {**Ending(state, reason).to_result(), DONE: True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        if self._state is not None:
            folder = Path(checkpoint_dir)
            self._state.save(folder)
            write_history(folder, self._history)

    def save(self, checkpoint_dir: str | None = None) -> Any:
        # A full disk costs a trial only its newest checkpoint, a silent bucket only a small part of
        # its time.
        began = time.monotonic()
        if began < self._next_save:
            return ray_compat.result_without_checkpoint(self)
        try:
            with awaited(f"the storage of trial {self.trial_id}"):
                return super().save(checkpoint_dir)
        except (OSError, UserError) as error:
            log.warning("trial %s: no checkpoint was written: %s", self.trial_id, error)
            now = time.monotonic()
            self._next_save = now + SAVE_AFTER * (now - began)
            return ray_compat.result_without_checkpoint(self)
        except Exception as error:  # of the experiment: as in a step, a restart would not help
            self._unsaved = error
            return ray_compat.result_without_checkpoint(self)

    def restore(self, checkpoint_path: Any) -> None:
        # An unavailable bucket costs a trial time, but no restarts (--max-failures).
        what, seconds = f"the storage of trial {self.trial_id}", self._context.outage_seconds
        retry = Retry(what, seconds, _is_away)
        retry(lambda: super(SweepTrial, self).restore(checkpoint_path))

    def load_checkpoint(self, checkpoint: Any) -> None:
        # If a checkpoint is damaged, the previous one is used; if all are, training starts anew.
        if not self._load(Path(checkpoint)) and (own := ray_compat.own_folder(self)) is not None:
            filesystem, folder, newest = own
            for path in reversed([p for p in list_checkpoints(filesystem, folder) if p <= newest]):
                with tune.Checkpoint(path, filesystem).as_directory() as local:
                    if self._load(Path(local)):
                        break
        for metrics in self._history:  # the worker that was lost may not have delivered them all
            self._run.epoch(metrics, {})

    def _load(self, folder: Path) -> bool:
        """Loads a checkpoint's state and history; False, with a line in the log, if damaged."""
        try:
            history = read_history(folder)
            inner = folder / "state"  # where checkpoints of earlier versions have the state's files
            state = inner if inner.is_dir() else folder
            self._state = self._context.experiment.load_state(state, self._experiment_config)
        except Exception as error:
            log.warning("trial %s: %s", self.trial_id, error)
            return False
        self._history = history
        name = self._context.to.objective
        self._past_values = [(m[EPOCH], m[name]) for m in history if name in m]
        return True

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Starts the next trial in this worker."""
        if self._opened is not None:
            self._opened.queue.finish()
        self._runs = [run for run in self._runs if not run.queue.ended]  # each keeps its records
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        for run in self._runs:  # Tune may end this process in ten seconds
            run.tell_missing()
        for run in self._runs:
            run.queue.close()


def checked(metrics: Metrics) -> Metrics:
    """An epoch's metrics as plain numbers. Raises UserError for a name that MLflow refuses."""
    for name in metrics:
        if not METRIC_NAME.fullmatch(name):
            raise UserError(
                f"MLflow takes no metric called {name!r}: use letters, digits, spaces and _ - . : /"
            )
    return {name: value if type(value) is int else float(value) for name, value in metrics.items()}


def _is_missing(error: Exception) -> bool:
    """Whether data cannot be read, at present or here."""
    return isinstance(error, OSError | UserError)


def _is_away(error: Exception) -> bool:
    """Whether an error means that a storage does not answer."""
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError)


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what a result depends on: this code, and the packages under it."""
    found = {"version_python": platform.python_version(), "code_version": _code_version()}
    for package in ("torch", "ray", "optuna", "mlflow"):
        found[f"version_{package}"] = version(package)
    return found


def _code_version() -> str:
    try:
        name = version("ali-sweeps")
    except PackageNotFoundError:
        name = "0"
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        shown = subprocess.run(git, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return name
    return f"{name}+{shown.stdout.strip()}" if shown.returncode == 0 else name
