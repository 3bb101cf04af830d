"""One trial: `ali.experiment.run` as a Ray Tune trainable that says how it ended, and why."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import platform
import subprocess
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.result import DONE

from ali.config import Config
from ali.errors import NonFiniteError, UserError
from ali.metrics import EPOCH
from sweeps.engine.storage import checkpoints
from sweeps.engine.tracking import (
    CONFIG,
    DIVERGED,
    END,
    FAILED,
    HISTORY,
    OUT_OF_MEMORY,
    REASON,
    Courier,
    Destination,
    TrialRun,
)

log = logging.getLogger(__name__)

Metrics = dict[str, float]
FLUSH_SECONDS = 30.0
STATE, METRICS, SUMS = "state", "metrics.json", "sums.json"  # inside a checkpoint


@dataclass(frozen=True)
class Experiment:
    """What a trial runs: the parts of `ali` that the sweep machinery needs, as functions.

    Attributes:
        run: (config, state or None) → one (state, metrics) an epoch; metrics hold EPOCH.
        load: (folder, config) → state, for `run` to go on from; raises UserError on a bad folder.
        pictures: (state, config) → uint8 (H, W, 3) by key.
        fingerprint: config → hash of the data.
        objective: config → name of the metric that its trials are compared by; less is better.
        baselines: config → val_errors without training, by name, logged to the sweep's run.
    """

    run: Callable[[Config, Any], Iterator[tuple[Any, Metrics]]]
    load: Callable[[Path, Config], Any]
    pictures: Callable[[Any, Config], dict[str, Any]]
    fingerprint: Callable[[Config], str]
    objective: Callable[[Config], str]
    baselines: Callable[[Config], dict[str, float]] | None = None


@dataclass(frozen=True)
class Setting:
    """What every trial of a sweep is told: its experiment, where to log, its share of a node."""

    experiment: Experiment
    to: Destination
    image_every: int
    threads: int
    outage_seconds: float


class AliTrial(tune.Trainable):
    """Tune's class interface: an epoch is a step; the end of a trial is a call, which can flush."""

    def setup(self, config: dict[str, Any], setting: Setting) -> None:  # type: ignore[override]
        torch.set_num_threads(setting.threads)
        self._setting = setting
        self._couriers: list[Courier] = []
        self._begin(config)

    def _begin(self, config: dict[str, Any]) -> None:
        self._experiment_config = Config.from_dict(config)
        self._epochs: Iterator[tuple[Any, Metrics]] | None = None
        self._state: Any = None
        self._history: list[Metrics] = []  # of each epoch
        self._past: list[tuple[float, float]] = []  # of a checkpoint, for the next result
        self._opened: TrialRun | None = None

    @property
    def _run(self) -> TrialRun:
        # Opened by the first step and not in setup: there nobody would see that the data's folder
        # hangs (progress.Watch looks at trials that have started).
        if self._opened is None:
            config = self._experiment_config
            params = {
                **config.to_dict(),
                "threads": self._setting.threads,
                "data_fingerprint": self._setting.experiment.fingerprint(config),
                **versions(),
            }
            self._opened = TrialRun(
                self._setting.to,
                self.trial_id,
                params,
                self._setting.outage_seconds,
                tags={CONFIG: json.dumps(config.to_dict())},
            )
            self._couriers.append(self._opened.courier)
        return self._opened

    def step(self) -> dict[str, Any]:
        seen, self._past = self._past, []
        result = self._outcome()
        return {**result, HISTORY: seen} if seen else result

    def _outcome(self) -> dict[str, Any]:
        try:
            return self._epoch()
        except NonFiniteError as error:
            return self._end(DIVERGED, str(error))
        except (MemoryError, torch.cuda.OutOfMemoryError) as error:
            return self._end(OUT_OF_MEMORY, str(error) or "MemoryError")
        except Exception as error:
            # The same code with the same seed would fail again: the trial ends here, and is not
            # tried again as one that lost its node is.
            if self._opened is not None:
                self._opened.text(traceback.format_exc(), "traceback.txt")
            return self._end(FAILED, f"{type(error).__name__}: {error}")

    def _epoch(self) -> dict[str, Any]:
        run, config, experiment = self._run, self._experiment_config, self._setting.experiment
        if self._epochs is None:
            self._epochs = experiment.run(config, self._state)
        try:
            self._state, metrics = next(self._epochs)
        except StopIteration:  # restored after its last epoch: nothing is left but to say so again
            return {**self._history[-1], DONE: True}
        before = self._history[-1] if self._history else {}
        for name in ("train_seconds", "eval_seconds"):  # of the trial, its restarts included
            metrics[f"total_{name}"] = before.get(f"total_{name}", 0.0) + metrics.get(name, 0.0)
        self._history.append(metrics)
        done = metrics[EPOCH] >= config.epochs
        images = {}
        if done or metrics[EPOCH] % self._setting.image_every == 0:
            images = experiment.pictures(self._state, config)
        run.epoch(metrics, images)
        if done:  # a result that counts is in MLflow before it is told to the search
            run.courier.flush(FLUSH_SECONDS)
        return {**metrics, DONE: done}

    def _end(self, end: str, reason: str) -> dict[str, Any]:
        if self._opened is not None:
            self._opened.courier.flush(FLUSH_SECONDS)
        return {END: end, REASON: reason[:500], DONE: True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        if self._state is not None:
            folder = Path(checkpoint_dir)
            self._state.save(folder / STATE)
            (folder / METRICS).write_text(json.dumps(self._history))
            (folder / SUMS).write_text(json.dumps(_sums(folder)))

    def save(self, checkpoint_dir: str | None = None) -> Any:
        # A full disk costs the trial its newest checkpoint, not its life.
        try:
            return super().save(checkpoint_dir)
        except (OSError, UserError) as error:
            log.warning("trial %s: no checkpoint was written: %s", self.trial_id, error)
            from ray.train._internal.checkpoint_manager import _TrainingResult

            return _TrainingResult(checkpoint=None, metrics=dict(self._last_result or {}))

    def load_checkpoint(self, checkpoint: Any) -> None:
        # A checkpoint that was cut short or damaged is told by its checksum; the one before it, or
        # the beginning, takes its place.
        if not self._load(Path(checkpoint)) and (storage := self._storage) is not None:
            filesystem = storage.storage_filesystem
            there = checkpoints(filesystem, storage.trial_fs_path)
            for folder in reversed([f for f in there if f <= storage.checkpoint_fs_path]):
                with tune.Checkpoint(folder, filesystem).as_directory() as local:
                    if self._load(Path(local)):
                        break
        for metrics in self._history:  # the process that was lost may not have delivered all
            self._run.epoch(metrics, {})

    def _load(self, folder: Path) -> bool:
        """Takes a checkpoint's state and history, or says why not."""
        try:
            if _sums(folder) != json.loads((folder / SUMS).read_text()):
                raise UserError(f"checkpoint {folder} differs from its checksums")
            history = json.loads((folder / METRICS).read_text())
            self._state = self._setting.experiment.load(folder / STATE, self._experiment_config)
        except (UserError, OSError, ValueError) as error:
            log.warning("trial %s: %s", self.trial_id, error)
            return False
        self._history = history
        name = self._setting.to.objective
        self._past = [(m[EPOCH], m[name]) for m in history if name in m]
        return True

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        if self._opened is not None:
            self._opened.courier.finish()
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        for courier in self._couriers:
            courier.close()


def _sums(folder: Path) -> dict[str, str]:
    """Checksums of what `save_checkpoint` writes; to read a file twice is cheap beside an epoch."""
    files = [folder / METRICS, *sorted(p for p in (folder / STATE).rglob("*") if p.is_file())]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _run(config: Config, state: Any) -> Iterator[tuple[Any, Metrics]]:
    from ali.experiment import run

    return run(config, state=state)


def _load(folder: Path, config: Config) -> Any:
    from ali.training.state import State
    from ali.training.step import device

    return State.load(folder, device(), config)


def _pictures(state: Any, config: Config) -> dict[str, Any]:
    from ali import data
    from ali.figures.grids import epoch_pictures

    return epoch_pictures(state.networks, data.load(config), config)


def _fingerprint(config: Config) -> str:
    from ali import data

    return data.load(config).fingerprint


def _objective(config: Config) -> str:
    from ali import data
    from ali.experiment import objective

    return objective(config, data.load(config))


def _baselines(config: Config) -> dict[str, float]:
    from ali import data
    from ali.experiment import baseline_errors

    return baseline_errors(config, data.load(config))


ALI = Experiment(_run, _load, _pictures, _fingerprint, _objective, _baselines)


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
