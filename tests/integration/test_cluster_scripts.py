"""What runs on the nodes of a cluster: one server a folder, its token, a job that is requeued."""

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from werkzeug.test import Client

from ali.beside import beside
from cluster import exclusive
from cluster.mlflow_token import guarded
from sweeps.engine import mirror
from sweeps.engine.mirror import LEASE
from sweeps.engine.storage import Storage
from tests.audit import read_epochs
from tests.integration.harness import TOY, WITHOUT_TORCH, is_running, wait_for
from tests.paths import CLUSTER, ROOT

EXCLUSIVE = f"""
import sys
sys.path.insert(0, {str(CLUSTER)!r})
import exclusive
exclusive.SETTLE_SECONDS, exclusive.STOP_SECONDS = 0.2, 12
exclusive.mirror.MIRROR_SECONDS, exclusive.mirror.LEASE_SECONDS = 0.2, 6
exclusive.main(exclusive.run)
"""


@contextlib.contextmanager
def server(folder, *command):
    """A server on a folder, as the only one."""
    process = subprocess.Popen(
        [sys.executable, "-c", EXCLUSIVE, str(folder), *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def test_a_folder_has_one_server_at_a_time(tmp_path):
    folder, started = tmp_path / "mlflow", tmp_path / "started"
    folder.mkdir()
    command = ("sh", "-c", f"echo $$ >> {started}; exec sleep 60")

    def pids():
        return started.read_text().split() if started.exists() else []

    with server(folder, *command) as first:
        wait_for(pids, first)
        with server(folder, *command) as second:  # of another head, which sees no process of this
            _, err = second.communicate(timeout=60)
        assert second.returncode == 2 and len(pids()) == 1
        assert re.search(r"error: the database in .*/mlflow is being run by process \d+ on ", err)
        os.kill(first.pid, signal.SIGKILL)  # its server lives on here, and dies with its machine
        os.kill(int(pids()[0]), signal.SIGKILL)

    with server(folder, *command) as third:
        wait_for(lambda: len(pids()) == 2, third)
        third.send_signal(signal.SIGTERM)
        third.communicate(timeout=60)
        assert not (folder / LEASE).exists(), "the next need not wait"
        assert not is_running(int(pids()[1]))

    with server(folder, *command) as taken_for_dead:
        wait_for(lambda: len(pids()) == 3, taken_for_dead)
        (folder / LEASE).write_text("process 1 on another\nits token")
        _, err = taken_for_dead.communicate(timeout=60)
        assert "was taken over by process 1 on another" in err and taken_for_dead.returncode == 1
        assert not is_running(int(pids()[2])), "two servers would write the same files"


def test_a_head_that_is_stopped_while_its_server_starts_leaves_none_behind(tmp_path):
    """Its lease expires, and another head's server would write the same files."""
    folder, started = tmp_path / "mlflow", tmp_path / "started"
    folder.mkdir()
    command = ("sh", "-c", f"echo $$ > {started}; kill -TERM $PPID; exec sleep 60")
    for _ in range(5):  # the signal comes at another moment each time
        with server(folder, *command) as stopped:
            stopped.communicate(timeout=30)
        assert stopped.returncode == 143 and not (folder / LEASE).exists()
        assert not is_running(int(started.read_text()))


def test_a_server_that_takes_long_to_stop_keeps_its_folder_meanwhile(tmp_path):
    """A second one on the same files would destroy them."""
    folder, started = tmp_path / "mlflow", tmp_path / "started"
    folder.mkdir()
    stubborn = ("sh", "-c", f"trap '' INT; touch {started}; sleep 60 & wait; wait")
    with server(folder, *stubborn) as first:
        wait_for(started.exists, first)
        first.send_signal(signal.SIGTERM)
        with server(folder, "true") as second:
            _, err = second.communicate(timeout=60)
        assert "is being run by process" in err and second.returncode == 2
        first.communicate(timeout=60)
        assert first.returncode == 143 and not (folder / LEASE).exists()


def test_a_server_ends_before_its_lease_does(tmp_path, monkeypatch):
    """A folder that cannot be written: another head starts a server once the lease has run out."""
    monkeypatch.setattr(mirror, "MIRROR_SECONDS", 0.1)
    monkeypatch.setattr(mirror, "LEASE_SECONDS", 3)
    lease = exclusive.FolderLease(Storage.at(tmp_path, "gone"), "the database")
    begun = time.monotonic()
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        lease.server = process
        monkeypatch.setattr(lease, "renew", lambda: (_ for _ in ()).throw(OSError("stale handle")))
        with beside(lease.keep):
            process.wait(timeout=30)
    assert lease.lost and process.returncode == -signal.SIGKILL
    assert time.monotonic() - begun >= 2


@pytest.fixture
def database():
    """Folders that PostgreSQL's user can pass through: of the database, and of its socket."""
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        pytest.skip("there is no PostgreSQL: apt-get install postgresql")
    folder = Path("/var/tmp") / f"ali-{os.getpid()}"
    (folder / "mlflow").mkdir(parents=True)
    yield folder / "mlflow" / "database", folder / "socket"
    shutil.rmtree(folder)


@pytest.mark.long
def test_a_dead_heads_process_number_does_not_keep_its_database_closed(database):
    folder, socket = database
    start = ("bash", CLUSTER / "postgres.sh", folder, socket)
    ready = [*Path("/usr/lib/postgresql").glob("*/bin")][-1] / "pg_isready"

    def is_ready():
        return subprocess.run([ready, "-qh", socket]).returncode == 0

    with server(folder.parent, *start) as first:
        wait_for(is_ready, first)
        with server(folder.parent, *start) as second:
            _, err = second.communicate(timeout=60)
        assert "is being run by process" in err and is_ready()
        os.kill(first.pid, signal.SIGKILL)
        while is_ready():  # the kernel ends the server whose lease nobody renews
            time.sleep(0.05)
    user = "postgres" if os.geteuid() == 0 else None  # a process of another is none of its own
    with subprocess.Popen(["sleep", "60"], user=user) as reused:
        for file in (folder / "postmaster.pid", socket / ".s.PGSQL.5432.lock"):
            file.write_text(f"{reused.pid}\n{folder}\n0\n5432\n{socket}\n\n0 0\nready\n")
            if user:
                shutil.chown(file, user)
        with server(folder.parent, *start) as third:
            wait_for(is_ready, third)
            third.send_signal(signal.SIGTERM)
            third.communicate(timeout=60)
        reused.kill()


def test_mlflow_asks_for_the_token():
    told = []

    def app(environ, start_response):
        told.append(environ["PATH_INFO"])
        start_response("200 OK", [])
        return [b"the experiments"]

    client = Client(guarded(app, "secret"))
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic ?"},
                    {"Authorization": "Bearer"}, {"Authorization": "Bearer sécret"}):  # fmt: skip
        answer = client.post("/api/2.0/mlflow/experiments/create", headers=headers)
        assert answer.status_code == 401 and "Basic" in answer.headers["WWW-Authenticate"]
    assert not told
    assert client.get("/api", headers={"Authorization": "Bearer secret"}).status_code == 200
    assert client.get("/", auth=("anyone", "secret")).status_code == 200
    assert client.get("/health").status_code == 200


STUBS = {  # of what a node of a Slurm cluster has; a step of a job runs at once, here
    "scontrol": "echo node",
    "srun": 'while case $1 in --*) ;; -w) shift ;; *) false ;; esac; do shift; done; exec "$@"',
    "hostname": "echo 127.0.0.1",
    "ray": '[ "$1" != start ] || exec sleep 600',
    "curl": 'case $* in *http_code*) echo 401 ;; *) [ -e "$HOME/answers" ] ;; esac',
    "mlflow": 'exec sleep "$MLFLOW_SECONDS"',
    "seq": 'exec /usr/bin/seq "$(($1 < WAITS ? $1 : WAITS))"',  # a wait of minutes
    "rm": "true",
}


@pytest.fixture
def slurm(tmp_path):
    """Runs slurm.sbatch as Slurm does, in a copy of the project in which a sweep prints its
    options; returns exit code, output and errors."""
    work = tmp_path / "work"
    for folder in (work / ".venv" / "bin", work / "sweeps", tmp_path / ".ray"):
        folder.mkdir(parents=True)
    (tmp_path / ".ray" / "auth_token").write_text("token")
    (tmp_path / "answers").touch()
    shutil.copytree(CLUSTER, work / "cluster")
    (work / "cluster" / "nodes.py").write_text("")
    (work / "sweeps" / "svhn.py").write_text(
        "import os, sys; print('sweep', *sys.argv[1:], os.environ['no_proxy'])"
    )
    (work / ".venv" / "bin" / "activate").touch()
    for name, line in STUBS.items():
        (work / ".venv" / "bin" / name).write_text(f"#!/bin/bash\n{line}\n")
        (work / ".venv" / "bin" / name).chmod(0o755)
    env = {
        "HOME": str(tmp_path),
        "PATH": f"{work}/.venv/bin:{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "SLURM_SUBMIT_DIR": str(work),
        "SLURM_JOB_NODELIST": "node",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_CPUS_PER_TASK": "1",
        "WAITS": "1",
    }

    def run(*options, **variables):
        command = ["bash", str(work / "cluster" / "slurm.sbatch"), *options]
        job = subprocess.Popen(
            command,
            env={**env, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = job.communicate(timeout=240)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
        return job.returncode, out, err

    run.work = work
    return run


def test_a_requeued_slurm_job_resumes_its_sweep(slurm):
    begun = slurm.work / "runs" / "own" / "sweep.json"
    outside = {"MLFLOW_TRACKING_URI": "http://server", "http_proxy": "http://proxy:3128"}
    for restarts, started, resume in ((0, False, ""), (1, False, ""), (1, True, " --resume")):
        if started:
            begun.parent.mkdir(parents=True)
            begun.write_text("{}")
        code, out, err = slurm("--name", "own", **outside, SLURM_RESTART_COUNT=str(restarts))
        assert code == 0 and f"sweep --name own{resume} localhost,127.0.0.1," in out, out + err


@pytest.mark.parametrize(
    ("seconds", "waits", "says"), [("0", "20", "has ended"), ("600", "1", "did not answer within")]
)
def test_a_slurm_job_whose_mlflow_does_not_come_ends_with_the_reason(slurm, seconds, waits, says):
    (slurm.work.parent / "answers").unlink()
    code, out, err = slurm("--name", "own", MLFLOW_SECONDS=seconds, WAITS=waits)
    assert code == 1 and f"error: MLflow {says}" in err and "sweep" not in out, out + err


@pytest.mark.long
def test_a_slurm_job_with_its_ray_and_its_mlflow(slurm):
    for name in ("ray", "mlflow", "curl", "seq", "rm"):
        (slurm.work / ".venv" / "bin" / name).unlink()
    shutil.copy(CLUSTER / "nodes.py", slurm.work / "cluster")
    shutil.copy(TOY, slurm.work / "sweeps" / "svhn.py")
    toy = {**WITHOUT_TORCH, "TOY_LOG": str(slurm.work / "toy.log"), "http_proxy": "http://no:1"}
    options = ("--name", "own", "--num-trials", "2", "--epochs", "2")
    for restarts, says in (("0", "[2/2 ended]"), ("1", "2 of them ended before")):
        code, out, err = slurm(*options, **toy, SLURM_RESTART_COUNT=restarts)
        assert code == 0 and says in out, out + err
    assert len(read_epochs(slurm.work / "toy.log")) == 4, "the requeued job has nothing left to do"
    runs = sqlite3.connect(slurm.work / "runs" / "mlflow" / "mlflow.db")
    assert runs.execute("select count(*) from runs where status = 'FINISHED'").fetchone() == (3,)
