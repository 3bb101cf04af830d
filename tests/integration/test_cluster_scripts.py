"""What runs on the nodes of a cluster: one server a folder, its token, a job that is requeued."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from werkzeug.test import Client

from cluster.mlflow_token import guarded
from sweeps.engine.mirror import LEASE
from tests.integration.harness import is_running, wait_for
from tests.paths import CLUSTER, ROOT

EXCLUSIVE = f"""
import sys
sys.path.insert(0, {str(CLUSTER)!r})
import exclusive
exclusive.SETTLE_SECONDS = 0.2
exclusive.mirror.MIRROR_SECONDS, exclusive.mirror.LEASE_SECONDS = 0.2, 3
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
