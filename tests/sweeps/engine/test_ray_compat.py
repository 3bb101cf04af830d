"""One contract test a function of ray_compat, against the real Ray: an upgrade shows what broke."""

import inspect
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from pyarrow import fs
from ray import tune
from ray._private.node import Node
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution.experiment_state import _ExperimentCheckpointManager
from ray.tune.experiment import Experiment, Trial

from sweeps.engine import ray_compat
from sweeps.engine.endings import LOST
from tests.sweeps.engine.test_search import search_over

pytestmark = pytest.mark.versions

RAYLET = Path(ray.__file__).parent / "core" / "src" / "ray" / "raylet" / "raylet"


class Counting(tune.Trainable):
    """Counts its steps; says in which process."""

    def setup(self, config):
        self.count = 0

    def step(self):
        self.count += 1
        return {"count": self.count}

    def save_checkpoint(self, checkpoint_dir):
        return {"count": self.count}

    def load_checkpoint(self, checkpoint):
        self.count = checkpoint["count"]


@pytest.fixture(scope="module")
def local_ray():
    ray_compat.start_processes_in_own_session()
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def experiment(tmp_path, local_ray):
    tune.register_trainable("counting", Counting)
    return Experiment(
        tmp_path.name,  # Ray keeps folders by name and second: two of one name would share them
        "counting",
        storage_path=str(tmp_path),
        trial_dirname_creator=lambda trial: trial.trial_id,
    )


@pytest.fixture
def trial(experiment):
    return ray_compat.create_trial(experiment, "00007", {"lr_d": 0.1}, {"lr_d": 0.1})


def test_quiet_keeps_tracebacks_of_a_bucket_that_is_away_out_of_the_progress():
    from ray.train._internal import storage, syncer

    ray_compat.quiet()
    assert not any(m.logger.isEnabledFor(logging.ERROR) for m in (storage, syncer))


def test_a_patch_whose_target_is_gone_raises_at_once(monkeypatch):
    class Renamed:
        pass

    with pytest.raises(ray_compat.RayCompatError, match=r"Renamed\.on_trial_checkpoint"):
        ray_compat._patch(Renamed, "on_trial_checkpoint", lambda original: original)
    monkeypatch.delattr(RayActorManager, "_actor_task_failed")
    with pytest.raises(ray_compat.RayCompatError, match="_actor_task_failed"):
        ray_compat.treat_ray_errors_as_worker_loss()
    monkeypatch.delattr(ray.tune.execution.class_cache, "DEFAULT_ENV_VARS")
    with pytest.raises(ray_compat.RayCompatError, match="DEFAULT_ENV_VARS"):
        ray_compat.reuse_prestarted_workers()


def test_treat_ray_errors_as_worker_loss():
    # The bare stack: RuntimeError("Caught unexpected exception: …") out of Tune's loop.
    ray_compat.treat_ray_errors_as_worker_loss()
    ray_compat.treat_ray_errors_as_worker_loss()
    told = []
    manager = RayActorManager(resource_manager=None)
    actor = SimpleNamespace(actor_id=0, _on_error=lambda actor, error: told.append(error))
    manager._cleanup_actor = lambda tracked_actor: None
    task = SimpleNamespace(_tracked_actor=actor, _on_error=None)
    killed = OutOfMemoryError("the node is running low on memory")
    manager._actor_task_failed(tracked_actor_task=task, exception=killed)  # as Ray calls it
    (error,) = told
    assert isinstance(error, RayActorError) and "low on memory" in str(error)


def test_disable_per_checkpoint_snapshots():
    # The table takes longer to save the more trials there are.
    ray_compat.disable_per_checkpoint_snapshots()
    manager = _ExperimentCheckpointManager(
        storage=None, checkpoint_period=10, sync_every_n_trial_checkpoints=2
    )
    manager._last_save_time = time.monotonic()
    trial, saved = object(), []
    for _ in range(4):
        manager.on_trial_checkpoint(trial)
    manager._storage = SimpleNamespace(experiment_driver_staging_path="")
    manager.sync_up_experiment_state(lambda: saved.append(1))
    assert not saved


def test_start_no_usage_reporter(monkeypatch):
    original, started = Node.start_api_server, []
    assert {"include_dashboard", "raise_on_failure"} <= set(inspect.signature(original).parameters)
    monkeypatch.setattr(Node, "start_api_server", lambda self, **how: started.append(how))
    ray_compat.start_no_usage_reporter()
    node, options = Node.__new__(Node), {"raise_on_failure": False}
    node.start_api_server(include_dashboard=False, **options)
    assert not started and node.webui_url == ""
    node.start_api_server(include_dashboard=None, **options)
    assert started == [{"include_dashboard": None, **options}]


def test_reuse_prestarted_workers_leaves_a_cluster_that_others_started_alone(monkeypatch):
    from ray._private import worker
    from ray.tune.execution import class_cache

    monkeypatch.setattr(class_cache, "DEFAULT_ENV_VARS", {"A": "1"})
    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", {"B"})
    for node in (None, SimpleNamespace(is_head=lambda: False)):
        monkeypatch.setattr(worker, "_global_node", node)
        ray_compat.reuse_prestarted_workers()
        assert class_cache.DEFAULT_ENV_VARS == {"A": "1"}
    monkeypatch.setattr(worker, "_global_node", SimpleNamespace(is_head=lambda: True))
    ray_compat.reuse_prestarted_workers()
    assert class_cache.DEFAULT_ENV_VARS == {} and set() == class_cache.ENV_VARS_TO_PROPAGATE


def test_rays_processes_are_in_a_session_of_their_own(local_ray):
    from ray._private import worker

    for started in worker._global_node.all_processes.values():
        assert os.getsid(started[0].process.pid) != os.getsid(0)


def test_start_timed_out():
    from ray._private import node

    message = "The current node timed out during startup."
    assert message in Path(node.__file__).read_text()
    assert ray_compat.start_timed_out(Exception(f"{message} This could happen because …"))
    assert not ray_compat.start_timed_out(ValueError("another"))


def test_recorded_cluster_address(tmp_path, monkeypatch):
    from ray._private import utils

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    file = Path(utils.get_ray_address_file(None))
    assert file == tmp_path / "ray" / "ray_current_cluster"
    assert ray_compat.recorded_cluster_address() is None
    file.parent.mkdir()
    utils.write_ray_address("10.0.0.1:6379")  # as `ray start` does
    assert ray_compat.recorded_cluster_address() == ("10.0.0.1:6379", file)
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert ray_compat.recorded_cluster_address() is None
    if os.geteuid() == 0:
        file.unlink()
        shutil.copy(tmp_path / "elsewhere", file)
        os.chown(file, 65534, 65534)
        assert ray_compat.recorded_cluster_address() is None


def test_runs_node_finds_the_raylet_that_ray_starts(local_ray):
    address = ray.get_runtime_context().gcs_address
    assert ray_compat.runs_node(address)
    assert not ray_compat.runs_node(address[:-1])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts processes of another user")
def test_runs_node_believes_no_other_user():
    sleeps = ["/ray/raylet", "-c", "sleep 60; :", "--gcs-address=10.0.0.1:6379"]
    for user in (None, 65534):
        with subprocess.Popen(sleeps, executable="/bin/sh", user=user) as process:
            while not Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(b"/ray"):
                time.sleep(0.01)
            assert ray_compat.runs_node("10.0.0.1:6379") is (user is None)
            process.kill()


def test_unreachable(local_ray):
    assert ray_compat.unreachable(ray.get_runtime_context().gcs_address) == ""
    assert ray_compat.unreachable("127.0.0.1:9") == "Connection refused"


TOKEN = """
import os, stat
from pathlib import Path
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from sweeps.engine.ray_compat import enable_token_authentication
file, seen = Path.home() / ".ray" / "auth_token", []
for mode in (None, 0o644):  # the second as Ray itself leaves it
    if mode and file.exists():
        file.chmod(mode)
    enable_token_authentication()
    seen += [file.read_text(), oct(stat.S_IMODE(file.stat().st_mode))] if file.exists() else []
print(is_token_auth_enabled(), len(os.environ.get("RAY_AUTH_TOKEN", "")), *seen)
"""


def test_enable_token_authentication(tmp_path):
    def enable(**variables):
        """Whether it is on, how long the token of this process is, and the file afterwards."""
        unset = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
        env = {k: v for k, v in os.environ.items() if k not in unset}
        done = subprocess.run(
            [sys.executable, "-c", TOKEN],
            env={**env, "HOME": str(tmp_path), **variables},
            umask=0,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    on, of_process, first, mode, second, mode_again = enable()
    assert (on, of_process, len(first), second) == ("True", "0", 64, first)
    assert mode == mode_again == "0o600"
    assert enable(HOME="/proc") == ["True", "64"], "where there is no home to write to"
    assert enable(RAY_AUTH_MODE="disabled")[0] == "False"


def test_cluster_config_is_the_file_that_ray_up_leaves_on_a_head(tmp_path, monkeypatch):
    from ray.autoscaler._private import commands

    monkeypatch.setenv("HOME", str(tmp_path))
    assert ray_compat.cluster_config() is None
    (tmp_path / "ray_bootstrap_config.yaml").write_text("max_workers: 3")
    assert ray_compat.cluster_config() == {"max_workers": 3}
    with open(commands.__file__) as source:  # the place where Ray puts it
        assert "~/ray_bootstrap_config.yaml" in source.read()


def test_create_trial_has_the_id_and_the_config(trial):
    assert trial.trial_id == "00007" and trial.config["lr_d"] == 0.1
    assert trial.status == Trial.PENDING


def test_mark_finished(trial):
    ray_compat.mark_finished(trial, {"epoch": 3})
    assert trial.status == Trial.TERMINATED and trial.last_result["epoch"] == 3
    assert trial.is_finished()


def test_adopt_checkpoint_continues_the_numbers(trial):
    filesystem, folder = ray_compat.trial_folder(trial)
    assert isinstance(filesystem, fs.FileSystem) and folder.endswith("00007")
    for number in (3, 4):
        filesystem.create_dir(f"{folder}/checkpoint_{number:06d}")
        ray_compat.adopt_checkpoint(trial, f"{folder}/checkpoint_{number:06d}", {"epoch": number})
    assert trial.checkpoint.path == f"{folder}/checkpoint_000004"
    assert trial.storage.current_checkpoint_index == 4


def test_adopt_checkpoint_of_another_trial(experiment, study, point):
    """As StudySearch does for another try of a trial that lost its workers."""
    search_over(study, point)
    study.report(study.ask(point).number, 5, 0.4)
    study.tell(0, LOST, None)
    search = search_over(study, point)
    search.add_configurations([experiment])
    first = search.next_trial()
    filesystem, folder = ray_compat.trial_folder(first)
    filesystem.create_dir(f"{folder}/checkpoint_000004")
    filesystem.open_output_stream(f"{folder}/checkpoint_000004/state").close()
    again = search.next_trial()
    assert (first.trial_id, first.status) == ("00000", Trial.TERMINATED)
    assert (again.trial_id, again.checkpoint.path) == ("00001", f"{folder}/checkpoint_000004")
    assert again.storage.current_checkpoint_index == 4, "its own are numbered after it"


def test_kill_worker_without_a_worker(trial):
    assert ray_compat.kill_worker(trial) is False


def test_memory_kills_counts_those_up_to_now(tmp_path):
    log = tmp_path / "error.txt"
    trial = SimpleNamespace(error_file=str(log))
    assert ray_compat.memory_kills(trial) == 0
    low = "the node is running low on memory"
    for failures, kills in (([low], 1), ([low, low], 2), ([low, low, "a lost node"], 0)):
        log.write_text("".join(f"Failure # {n}\n{text}\n" for n, text in enumerate(failures, 1)))
        assert ray_compat.memory_kills(trial) == kills


def test_memory_kills_reads_what_ray_writes(trial):
    killed = "Task was killed due to the node running low on memory."
    assert b"due to the node running low on memory" in RAYLET.read_bytes()
    trial.handle_error(RayActorError(error_msg=killed))
    assert ray_compat.memory_kills(trial) == 1


def test_forget_failures(tmp_path, experiment):
    experiment.spec["max_failures"] = 1
    trial = ray_compat.create_trial(experiment, "00008", {}, {})
    for forget, recovers in ((False, True), (True, True), (False, False)):
        if forget:
            ray_compat.forget_failures(trial)
        trial.handle_error(RayActorError(error_msg="lost"))
        assert trial.should_recover() == recovers


def test_pending_and_stopped_trials_by_tunes_own_controller(tmp_path):
    from ray.tune.execution.tune_controller import TuneController

    for name in ("get_live_trials", "stop_trial", "_mark_trial_to_checkpoint"):
        assert callable(getattr(TuneController, name))


def test_from_a_trials_own_worker(tmp_path):
    trainable = Counting()
    assert ray_compat.own_folder(trainable) is None
    trainable.train()
    result = ray_compat.result_without_checkpoint(trainable)
    assert result.checkpoint is None and result.metrics["count"] == 1
    assert not result.checkpoint, "which is how Tune sees that there is none"


def test_stop_signal_is_one_that_tune_listens_to():
    from ray.tune import tune as module

    with open(module.__file__) as source:
        assert f"signal.{ray_compat.STOP_SIGNAL.name}" in source.read()


def test_every_variable_that_is_set_is_one_that_ray_reads():
    sources = [path.read_text(errors="replace") for path in Path(ray.__file__).parent.rglob("*.py")]
    for name in (*ray_compat.ENVIRONMENT, ray_compat.PRELOADED_MODULES):
        in_binary = name.removeprefix("RAY_").encode() in RAYLET.read_bytes()
        assert in_binary or any(f'"{name}"' in source for source in sources), name
