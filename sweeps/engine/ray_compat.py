"""The only file that touches private or undocumented names of Ray: one function per need.

Each says why it is needed, and tests/sweeps/engine/test_ray_compat.py checks each against the real
Ray, so that an upgrade of Ray shows which one broke. A patch without its target raises at once.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import os
import secrets
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
import yaml
from pyarrow import fs
from ray import tune
from ray.exceptions import AuthenticationError, RayActorError, RayError, RayTaskError
from ray.tune.experiment import Experiment, Trial

from ali import environment
from ali.errors import UserError

# Variables that Ray reads and does not document, or that keep its output out of ours.
ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # ./data is where the driver was started
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "600000",  # workers that wait for a slow driver
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # GracefulShutdown handles it
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a diverged trial has no objective to report
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000",  # StudySearch keeps to --max-concurrent
}
PRELOADED_MODULES = "RAY_preload_python_modules"  # what workers import before they are needed
CONNECT_SECONDS, HEALTH_SECONDS = 5, 20  # for a cluster to answer
STOP_SIGNAL = signal.SIGUSR1  # Tune then ends its loop after running steps, and saves its state


class RayCompatError(RuntimeError):
    """This version of Ray lacks something that sweeps are built on."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"Ray {ray.__version__} has no {what}: install a version that pyproject.toml allows"
        )


def quiet() -> None:
    """Silences the loggers whose messages `progress` prints as one line each."""
    for name in ("ray._private.authentication", "ray.tune", "ray.train._internal"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


# Patches ------------------------------------------------------------------------------------


def _patch(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replaces owner.name, once, by make(what was there). Raises RayCompatError if it is gone."""
    original = getattr(owner, name, None)
    if original is None:
        raise RayCompatError(f"{owner.__module__}.{owner.__qualname__}.{name}")
    if getattr(original, "__module__", "") != __name__:
        setattr(owner, name, make(original))


def treat_ray_errors_as_worker_loss() -> None:
    """Makes Tune restart a trial after any error that Ray itself raises in its place.

    Tune knows two kinds of errors, and ends the whole sweep at any other, for instance when Ray's
    memory monitor has killed a trial's worker.
    """
    from ray.air.execution._internal.actor_manager import RayActorManager

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def failed(self: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
            known = isinstance(exception, RayActorError | RayTaskError)
            if isinstance(exception, RayError) and not known:
                exception = RayActorError(error_msg=str(exception))
            original(self, tracked_actor_task, exception)

        return failed

    _patch(RayActorManager, "_actor_task_failed", make)


def disable_per_checkpoint_snapshots() -> None:
    """Makes Tune save its table of trials only every ten seconds and at the end.

    When it deletes old checkpoints, it also saves the table after every second checkpoint: with
    many short trials, this is most of the driver's time. A resume reads the study, not that table.
    """
    from ray.tune.execution.experiment_state import _ExperimentCheckpointManager

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def nothing(self: _ExperimentCheckpointManager, trial: Trial) -> None:
            return None

        return nothing

    _patch(_ExperimentCheckpointManager, "on_trial_checkpoint", make)


def start_no_usage_reporter() -> None:
    """Without a dashboard, stops Ray from starting its stand-in: it asks clouds where it runs."""
    from ray._private.node import Node

    def make(original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)  # its signature, too
        def start(self: Node, **how: Any) -> None:
            if how["include_dashboard"] is False:
                self._webui_url = ""  # as Ray leaves it without a dashboard
            else:
                original(self, **how)

        return start

    _patch(Node, "start_api_server", make)


def reuse_prestarted_workers() -> None:
    """Lets trials run in the worker processes that Ray has started in advance, one per core.

    Tune asks for workers with certain environment variables, and Ray starts new ones for that: a
    second start of Python, torch and MLflow. If this process has started Ray, all workers inherit
    these variables anyway.
    """
    from ray._private import worker
    from ray.tune.execution import class_cache

    for module, name in ((worker, "_global_node"), (class_cache, "DEFAULT_ENV_VARS")):
        if not hasattr(module, name):
            raise RayCompatError(f"{module.__name__}.{name}")
    if not hasattr(class_cache, "ENV_VARS_TO_PROPAGATE"):
        raise RayCompatError(f"{class_cache.__name__}.ENV_VARS_TO_PROPAGATE")
    node = worker._global_node
    if node is not None and node.is_head():
        class_cache.DEFAULT_ENV_VARS.clear()
        class_cache.ENV_VARS_TO_PROPAGATE = set()  # type: ignore[assignment]


def start_processes_in_own_session() -> None:
    """Makes `ray.init` start its processes in a session of their own.

    A signal to a driver's process group, from a scheduler or a closing terminal, would otherwise
    end them before the driver has ended its trials in order.
    """
    from ray._private import services

    if not hasattr(services, "ConsolePopen"):
        raise RayCompatError(f"{services.__name__}.ConsolePopen")
    if not isinstance(services.ConsolePopen, functools.partial):
        own = functools.partial(services.ConsolePopen, start_new_session=True)
        services.ConsolePopen = own  # type: ignore[misc,assignment]


def start_timed_out(error: Exception) -> bool:
    """Whether `ray.init` raised a bare Exception since its start took over half a minute."""
    return "timed out during startup" in str(error)


# The cluster --------------------------------------------------------------------------------


def recorded_cluster_address() -> tuple[str, Path] | None:
    """The address of the cluster that this user's `ray start` made this machine a part of, and the
    file that says so.

    Ray itself trusts that file whoever has written it, and joins a cluster that can run anything
    as this user.
    """
    from ray._private.utils import get_ray_address_file

    file = Path(get_ray_address_file(None))
    try:
        found = file.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
            return None
        return file.read_text(encoding="utf-8").strip(), file
    except OSError:
        return None


def runs_node(address: str) -> bool:
    """Whether a process of this user makes this machine a part of the cluster at that address."""
    return os.getuid() in dict(_raylets(address))


def _raylets(address: str) -> Iterator[tuple[int, str]]:
    """User and socket of the processes that make this machine a part of a cluster."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (process / "cmdline").read_text(encoding="utf-8", errors="replace")
            command, *options = line.split("\0")
            if command.endswith("/raylet") and f"--gcs-address={address}" in options:
                told = dict(option.split("=", 1) for option in options if "=" in option)
                yield process.stat().st_uid, told.get("--raylet_socket_name", "")


def unreachable(address: str) -> str:
    """Why a cluster at that address cannot be joined; "" if it can.

    `ray.init` tries for minutes, and a refused token aborts the process: a subprocess asks first.
    """
    host, _, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except ValueError:
        return "not an address of the form HOST:PORT"
    except OSError as error:
        return error.strerror or str(error)
    if "://" in address:  # Ray Client has another server
        return ""
    check = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        done = subprocess.run(check, capture_output=True, text=True, timeout=HEALTH_SECONDS)
    except subprocess.TimeoutExpired:
        return f"what listens there did not answer as Ray within {HEALTH_SECONDS} s"
    if done.returncode == 0:
        sockets = [socket for _, socket in _raylets(address)]
        barred = sockets and not any(os.access(socket, os.W_OK) for socket in sockets)
        return "another user has started it on this machine" if barred else ""
    if "uthentication token" in done.stderr:
        return (
            "it asks for another token: set RAY_AUTH_MODE=token, and copy the ~/.ray/auth_token of "
            "its machine"
        )
    return done.stderr.strip().rpartition("\n")[2]


def enable_token_authentication() -> None:
    """Makes Ray, which listens to the whole network, require the token in ~/.ray/auth_token.

    Ray does so by itself from 2.59 on, but leaves the file for all to read. RAY_AUTH_MODE=disabled
    is left as it is. Raises UserError if RAY_AUTH_TOKEN_PATH names no token.
    """
    from ray import _raylet

    environment.set_defaults(RAY_AUTH_MODE="token")
    _raylet.Config.initialize("")  # type: ignore[attr-defined]  # reads the variable again
    loader = _raylet.AuthenticationTokenLoader.instance()  # type: ignore[attr-defined]
    try:
        file = Path.home() / ".ray" / "auth_token"
        if not loader.has_token(ignore_auth_mode=True):
            _create_token(file)
        elif file.exists() and file.stat().st_mode & 0o077:
            file.chmod(0o600)
    except AuthenticationError as error:
        raise UserError(str(error).split(". ")[0]) from None
    except (OSError, RuntimeError):  # no writable home: a token for this process
        environment.set_defaults(RAY_AUTH_TOKEN=secrets.token_hex(32))
    loader.reset_cache()


def _create_token(file: Path) -> None:
    """Writes a new token that only this user can read; another process's token is kept."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, encoding="utf-8") as new:  # of mode 600
        new.write(secrets.token_hex(32))
        new.flush()
        if file.exists() and not file.stat().st_size:
            file.unlink()
        with contextlib.suppress(FileExistsError):
            os.link(new.name, file)


def cluster_config() -> dict[str, Any] | None:
    """The cluster file that `ray up` was run with; None on other machines.

    It names the machines that the autoscaler may add, which Ray's public interface does not.
    """
    file = Path("~/ray_bootstrap_config.yaml").expanduser()
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else None


# Trials, seen from the driver ---------------------------------------------------------------


def create_trial(
    experiment: Experiment, trial_id: str, config: Mapping[str, Any], params: Mapping[str, Any]
) -> Trial:
    """A trial with an id of our own, to hand to Tune.

    Tune's public searchers cannot choose ids, and after a resume a trial must have the id it had.
    """
    from ray.tune.experiment.config_parser import _create_trial_from_spec, _make_parser

    spec = copy.deepcopy(experiment.spec)
    spec["config"] = {**spec.get("config", {}), **config}
    trial = _create_trial_from_spec(
        spec, _make_parser(), trial_id=trial_id, evaluated_params=dict(params)
    )
    trial.init_local_path()
    return trial


def mark_finished(trial: Trial, result: Mapping[str, Any]) -> None:
    """Has Tune list a trial that ended under an earlier driver, without running it."""
    trial.set_status(Trial.TERMINATED)
    trial.run_metadata.last_result = {**result, "done": True}


def trial_folder(trial: Trial) -> tuple[fs.FileSystem, str]:
    """The file system and the folder that hold a trial's checkpoints."""
    assert trial.storage is not None
    return trial.storage.storage_filesystem, trial.storage.trial_fs_path


def adopt_checkpoint(trial: Trial, checkpoint: str, result: Mapping[str, Any]) -> None:
    """Tells Tune of a checkpoint that a trial wrote under an earlier driver; oldest first.

    Tune then restores the trial from it, numbers later ones after it, and deletes it in its turn.
    """
    from ray.train._internal.checkpoint_manager import _TrainingResult

    assert trial.storage is not None
    trial.storage.current_checkpoint_index = int(checkpoint.rsplit("_", 1)[1]) - 1
    found = tune.Checkpoint(checkpoint, filesystem=trial.storage.storage_filesystem)
    trial.on_checkpoint(_TrainingResult(checkpoint=found, metrics=dict(result)))


def kill_worker(trial: Trial) -> bool:
    """Kills the worker of a running trial; False if it has none. Tune restarts the trial."""
    actor = trial.temporary_state.ray_actor
    if actor is None:
        return False
    ray.kill(actor)
    return True


def memory_kills(trial: Trial) -> int:
    """How often in a row, up to now, Ray's memory monitor has killed a trial's worker.

    Tune hands schedulers no exception; it only keeps a log of a trial's failures.
    """
    if not trial.error_file or not Path(trial.error_file).exists():
        return 0
    text = Path(trial.error_file).read_text(encoding="utf-8", errors="replace")
    failures = text.split("Failure #")
    killed = ["running low on memory" in text for text in failures]
    return sum(killed) if killed[-1] else 0


def forget_failures(trial: Trial) -> None:
    """Resets Tune's count of a trial's failures.

    Tune counts the failures of a trial's whole life against `max_failures`.
    """
    trial.run_metadata.num_failures = 0


def pending_trials(controller: Any) -> list[Trial]:
    """The trials that wait for a worker; Tune hands schedulers the `controller`."""
    return [t for t in controller.get_live_trials() if t.status == Trial.PENDING]


def stop_pending_trial(controller: Any, trial: Trial) -> None:
    """Ends a trial that waits for a worker, in Tune's saved table, too.

    Without the second step, the table shows a trial without a worker as RUNNING.
    """
    controller.stop_trial(trial)
    controller._mark_trial_to_checkpoint(trial)


# Trials, seen from their worker -------------------------------------------------------------


def result_without_checkpoint(trainable: tune.Trainable) -> Any:
    """What a trainable's `save` returns to have Tune continue although no checkpoint was written.

    An exception there would fail the trial.
    """
    from ray.train._internal.checkpoint_manager import _TrainingResult

    return _TrainingResult(checkpoint=None, metrics=dict(trainable._last_result or {}))


def own_folder(trainable: tune.Trainable) -> tuple[fs.FileSystem, str, str] | None:
    """File system, folder and newest checkpoint of the trial in this worker; None outside Tune.

    To restore from an older checkpoint, a trial has to find it.
    """
    storage = trainable._storage
    if storage is None:
        return None
    return storage.storage_filesystem, storage.trial_fs_path, storage.checkpoint_fs_path
