"""How a cluster's resources are divided among trials."""

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from ali.errors import UserError
from sweeps.engine import ray_compat
from sweeps.engine.cluster import (
    GPU_CPU,
    GPU_NODE_CPU,
    NODE_CPU,
    TrialResources,
    allocate_resources,
    check_ray,
    find_cluster,
    max_cluster_resources,
    own_temp_folder,
    start_ray,
)
from sweeps.engine.options import Options

pytestmark = pytest.mark.versions


def options(**more):
    return Options(name="s", **more)


@pytest.mark.parametrize(
    ("asked", "resources", "share"),
    [
        ({}, {"CPU": 2}, TrialResources(1, 0.0, 1, 2)),
        ({"max_concurrent": 1}, {"CPU": 2}, TrialResources(2, 0.0, 2, 1)),
        ({"num_trials": 1}, {"CPU": 8}, TrialResources(8, 0.0, 8, 1)),
        ({"cpus_per_trial": 4}, {"CPU": 8}, TrialResources(4, 0.0, 4, 2)),
        ({}, {"CPU": 16, "GPU": 2}, TrialResources(8, 1.0, 8, 2)),
        ({"gpus_per_trial": 0.25}, {"CPU": 16, "GPU": 2}, TrialResources(2, 0.25, 2, 8)),
        ({"gpus_per_trial": 0}, {"CPU": 4, "GPU": 1}, TrialResources(1, 0.0, 1, 4)),
        ({"max_concurrent": 3}, {"CPU": 2}, TrialResources(1, 0.0, 1, 2)),
        ({"max_concurrent": 3}, {"CPU": 16, NODE_CPU: 4}, TrialResources(4, 0.0, 4, 3)),
    ],
)
def test_shares(asked, resources, share):
    assert allocate_resources(options(**asked), resources) == share


@pytest.mark.parametrize(
    ("asked", "resources", "cpus", "at_once"),
    [
        ({"max_concurrent": 3}, {"CPU": 12, NODE_CPU: 6}, 3, 3),
        ({"max_concurrent": 3, "cpus_per_trial": 4}, {"CPU": 12, NODE_CPU: 6}, 4, 2),
        ({"cpus_per_trial": 5}, {"CPU": 16, NODE_CPU: 8}, 5, 2),
        ({"gpus_per_trial": 0.6}, {"CPU": 8, "GPU": 2}, 4, 2),
        ({"gpus_per_trial": 0.4}, {"CPU": 8, "GPU": 2}, 2, 4),
        ({"gpus_per_trial": 0.1}, {"CPU": 32, "GPU": 1}, 3, 10),
        ({"gpus_per_trial": 2}, {"CPU": 8, "GPU": 4}, 4, 2),
        ({"gpus_per_trial": 0.1, "max_concurrent": 10}, {"CPU": 4, "GPU": 1}, 1, 4),
    ],
)
def test_as_many_run_at_a_time_as_fit_on_the_nodes(asked, resources, cpus, at_once):
    share = allocate_resources(options(**asked), resources)
    assert (share.cpus, share.concurrent) == (cpus, at_once)


@pytest.mark.parametrize(
    ("asked", "resources", "fit", "gpus", "at_once"),
    [
        ({"num_trials": 30}, {"CPU": 16, "GPU": 1}, 4, 1 / 4, 4),
        ({"num_trials": 30}, {"CPU": 16, "GPU": 1}, 3, 1 / 2, 2),
        ({"num_trials": 30}, {"CPU": 16, "GPU": 1}, 1, 1, 1),
        ({"num_trials": 3}, {"CPU": 16, "GPU": 1}, 4, 1 / 2, 2),
        ({"num_trials": 1}, {"CPU": 16, "GPU": 1}, 4, 1, 1),
        ({"num_trials": 30}, {"CPU": 16, "GPU": 2}, 4, 1 / 2, 4),
        ({"num_trials": 64}, {"CPU": 32, "GPU": 8}, 4, 1 / 2, 16),
        ({"num_trials": 30}, {"CPU": 32, "GPU": 8}, 4, 1, 8),
        ({"num_trials": 64}, {"CPU": 12, "GPU": 8}, 4, 1, 8),
        ({"num_trials": 64, "max_concurrent": 9}, {"CPU": 32, "GPU": 8}, 4, 1, 8),
        ({"num_trials": 30}, {"CPU": 2, "GPU": 1}, 4, 1 / 2, 2),
        ({"num_trials": 30, "cpus_per_trial": 8}, {"CPU": 16, "GPU": 1}, 4, 1 / 2, 2),
        ({"num_trials": 30, "max_concurrent": 1}, {"CPU": 16, "GPU": 1}, 4, 1, 1),
        ({"num_trials": 30, "gpus_per_trial": 1}, {"CPU": 16, "GPU": 1}, 4, 1, 1),
    ],
)
def test_trials_share_gpus_where_they_may_and_leave_none_idle(asked, resources, fit, gpus, at_once):
    found = allocate_resources(options(**asked), resources, fit)
    assert (found.gpus, found.concurrent) == (gpus, at_once)


def test_only_the_cores_of_nodes_with_gpus_count_for_trials_on_gpus():
    """A node of 64 cores, and one of 4 cores with 4 GPUs."""
    both = {"CPU": 68, NODE_CPU: 64, "GPU": 4, GPU_CPU: 4, GPU_NODE_CPU: 4}
    assert allocate_resources(options(num_trials=30), both) == TrialResources(1, 1.0, 1, 4)
    alone = allocate_resources(options(num_trials=30, gpus_per_trial=0), both)
    assert (alone.cpus, alone.concurrent) == (2, 30)


def test_on_kubernetes_machines_that_are_still_to_come_are_asked_for(monkeypatch):
    """As cluster/kuberay.yaml does: its head has no cores, and no worker runs yet."""
    asked = options(gpus_per_trial=1, cpus_per_trial=4, max_concurrent=8)
    empty = {NODE_CPU: 0, "memory": 1}
    with pytest.raises(UserError, match="there are 0 on a node"):
        allocate_resources(asked, empty)
    monkeypatch.setenv("RAY_USAGE_STATS_KUBERAY_IN_USE", "1")
    assert allocate_resources(asked, empty) == TrialResources(4, 1.0, 4, 8)


@pytest.mark.parametrize("asked", [{"gpus_per_trial": 1}, {"cpus_per_trial": 3}])
def test_a_share_larger_than_the_node(asked):
    with pytest.raises(UserError, match="lower --cpus-per-trial"):
        allocate_resources(options(**asked), {"CPU": 8, NODE_CPU: 2})


CLUSTER = {
    "max_workers": 4,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 8}},
        "small": {"resources": {"CPU": 2}},
        "large": {"resources": {"CPU": 16, "GPU": 2}},
    },
}


def test_an_autoscaler_counts_with_the_workers_that_it_may_add(monkeypatch):
    monkeypatch.setattr(ray_compat, "cluster_config", lambda: CLUSTER)
    assert max_cluster_resources({"CPU": 8, NODE_CPU: 8, "memory": 1}) == {
        "CPU": 64,
        "GPU": 8,
        NODE_CPU: 16,
        GPU_CPU: 64,
        GPU_NODE_CPU: 16,
        "memory": 1,
    }
    assert max_cluster_resources({"CPU": 100, NODE_CPU: 50})["CPU"] == 100, "there are more already"


def test_without_an_autoscaler_there_is_what_there_is(monkeypatch):
    now = {"CPU": 3, NODE_CPU: 1}
    monkeypatch.setattr(ray_compat, "cluster_config", lambda: None)
    assert max_cluster_resources(now) == now
    alone = CLUSTER | {"available_node_types": {"head": {"resources": {"CPU": 8}}}}
    monkeypatch.setattr(ray_compat, "cluster_config", lambda: alone)
    assert max_cluster_resources(now) == now


def test_a_machine_too_busy_for_ray_is_said_in_one_line(home, monkeypatch):
    import ray

    def init(**_):
        raise Exception("The current node timed out during startup. This could happen because …")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match="too busy: try again later"):
        start_ray()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home and a folder for temporary files, short enough for sockets, of this test alone."""
    folder = Path(tempfile.mkdtemp(prefix="t"))
    for variable in ("RAY_ADDRESS", "RAY_TMPDIR", "RAY_AUTH_MODE"):
        monkeypatch.setenv(variable, "")  # so that what a test sets is gone after it
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)


def record(folder, address, user=None):
    """What `ray start` leaves where Ray looks for a cluster."""
    (folder / "ray").mkdir()
    (folder / "ray" / "ray_current_cluster").write_text(address)
    if user is not None:
        os.chown(folder / "ray" / "ray_current_cluster", user, user)


def test_a_cluster_that_is_gone_is_named_at_once(home, monkeypatch):
    record(home, "127.0.0.1:9")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9, .* does not answer"):
        check_ray()
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9, .* does not answer"):
        check_ray()
    monkeypatch.setenv("RAY_ADDRESS", "local")
    check_ray()


def test_who_answers_for_a_cluster_that_is_gone_is_not_joined(home, monkeypatch):
    monkeypatch.setattr(ray_compat, "unreachable", lambda address: "")  # another user's Ray
    record(home, "127.0.0.1:6379")
    with pytest.raises(UserError, match="does not answer: start it again"):
        check_ray()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of another user")
def test_what_another_user_has_started_is_not_joined(home, monkeypatch):
    record(home, "127.0.0.1:9", user=65534)
    assert find_cluster() is None
    check_ray()
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(UserError, match="you have started no Ray"):
        check_ray()


@pytest.mark.parametrize(
    ("address", "why"), [("127.0.0.1:9", "refused"), ("head", "HOST:PORT"), ("ray://head", "HOST")]
)
def test_an_address_that_does_not_answer_is_refused_within_seconds(home, monkeypatch, address, why):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=f"RAY_ADDRESS={address} does not answer .*{why}"):
        check_ray()


def test_a_server_that_is_not_ray_is_refused(home, monkeypatch):
    monkeypatch.setattr(ray_compat, "HEALTH_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(UserError, match="did not answer as Ray within 1 s"):
            check_ray()


def test_ray_has_a_folder_that_no_other_user_enters(home):
    before = os.umask(0)
    try:
        folder = own_temp_folder()
    finally:
        os.umask(before)
    assert folder.parent == home and stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    assert stat.S_IMODE(own_temp_folder().stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("variable", "folder", "why"),
    [
        ("TMPDIR", "/no/such", "TMPDIR=/no/such, which is no folder"),
        ("TMPDIR", "/proc", "cannot be used"),
        ("RAY_TMPDIR", "/proc/ray", "cannot be used"),
        ("RAY_TMPDIR", "/tmp/" + "x" * 60, "too long a path"),
        ("RAY_TMPDIR", "/dev/null", "cannot be used"),
    ],
)
def test_a_folder_that_ray_cannot_use_is_named_with_what_to_set(
    home, monkeypatch, variable, folder, why
):
    monkeypatch.setenv(variable, folder)
    with pytest.raises(UserError, match=f"{why}.*: set RAY_TMPDIR to"):
        check_ray()
    assert not Path("/tmp/" + "x" * 60).exists()


def test_a_full_disk_is_named_before_ray_starts(home, monkeypatch):
    full = SimpleNamespace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    with pytest.raises(UserError, match="on a full disk: set RAY_TMPDIR"):
        check_ray()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes folders of another user")
def test_a_folder_that_another_user_has_put_there_is_not_used(home):
    (home / f"ali-{os.getuid()}").mkdir()
    os.chown(home / f"ali-{os.getuid()}", 65534, 65534)
    with pytest.raises(UserError, match="another user's: set RAY_TMPDIR"):
        check_ray()


START = """
import os, ray
from sweeps.engine.cluster import start_ray
os.umask(0o022)
start_ray()
print(ray.get_runtime_context().gcs_address, flush=True)
input()
"""


@pytest.mark.slow
def test_a_ray_of_our_own_asks_for_a_token_that_only_we_can_read(home):
    if os.geteuid() == 0:
        record(home, "127.0.0.1:9", user=65534)  # another's, which is no reason not to start
    driver = subprocess.Popen(
        [sys.executable, "-c", START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert driver.stdout.readline().endswith("starts Ray on this machine\n")
        address = driver.stdout.readline().strip()
        token = home / ".ray" / "auth_token"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert list((home / f"ali-{os.getuid()}" / "ray").glob("session_*"))
        stranger = {**os.environ, "HOME": "/nowhere", "RAY_ADDRESS": address}
        ask = [sys.executable, "-m", "ray.scripts.scripts", "health-check"]
        done = subprocess.run(ask, env=stranger, capture_output=True, text=True, timeout=60)
        assert done.returncode and "oken" in done.stderr, done.stderr
    finally:
        driver.communicate("\n", timeout=60)
