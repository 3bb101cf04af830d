"""Runs sweeps and servers as real processes; `tests/audit.py` says what became of a sweep."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.request import urlopen

import numpy as np
import optuna
from mlflow import MlflowClient

from sweeps.engine import tracking
from sweeps.engine.tracking.client import connect, default_uri
from tests import audit
from tests.paths import CLUSTER

PATIENCE = 60  # seconds for a server to come up on a busy machine
TOY = Path(__file__).with_name("toy_sweep.py")
EPOCHS = 6  # of the toy
WITHOUT_TORCH = {"RAY_preload_python_modules": "sweeps.engine.trial,mlflow"}  # in the toy's workers


@dataclass
class Toy:
    """One toy sweep in a folder of its own.

    `database`: an MLflow database to start from; `server`: where it logs, if not to one.
    """

    folder: Path
    name: str = "toy"
    env: dict[str, str] = field(default_factory=dict)
    runs_folder: Path | None = None
    database: Path | None = None
    server: str | None = None

    @property
    def runs(self) -> Path:
        return self.runs_folder or self.folder / "runs"

    @property
    def uri(self) -> str:
        return self.server or f"sqlite:///{self.runs}/mlflow.db"

    def command(self, *options: str) -> tuple[list[str], dict[str, str]]:
        """What starts it, and in which environment."""
        env = {**os.environ, "TOY_LOG": str(self.folder / "toy.log"), **WITHOUT_TORCH}
        env.pop("MLFLOW_TRACKING_URI", None)
        env |= self.env
        if self.database and not (self.runs / "mlflow.db").exists():
            self.runs.mkdir(exist_ok=True)
            shutil.copy(self.database, self.runs)
        command = [sys.executable, str(TOY), "--name", self.name, "--output-dir", str(self.runs)]
        if "--front-page" not in options:  # it takes seconds, and one test looks at it
            command.append("--no-front-page")
        return [*command, *options], env

    def start(self, *options: str, out: IO | int = subprocess.PIPE) -> subprocess.Popen:
        command, env = self.command(*options)
        return subprocess.Popen(
            command,
            env=env,
            stdout=out,
            stderr=out,
            text=True,
            start_new_session=True,
        )

    def run(self, *options: str, expect: int = 0) -> str:
        process = self.start(*options)
        out, err = process.communicate(timeout=240)
        assert process.returncode == expect, f"exit code {process.returncode}\n{out}\n{err}"
        return out + err

    def refused(self, *options: str) -> str:
        return refused(TOY, "--name", self.name, "--output-dir", self.runs, *options)

    def starts(self) -> list[tuple[int, int, int]]:
        """(seed, epoch that it went on from, process) of each start of a trial, oldest first."""
        log = self.folder / "toy.log.starts"
        lines = log.read_text().splitlines() if log.exists() else []
        return [tuple(map(int, line.split())) for line in lines]  # type: ignore[misc]

    def epochs(self) -> Counter[tuple[int, int]]:
        """How often each (seed, epoch) was trained."""
        return audit.read_epochs(self.folder / "toy.log")

    def study(self) -> optuna.Study:
        return audit.read_study(self.runs / self.name, self.name)

    def mlflow(self) -> dict[str, list]:
        """Runs of trials, by trial id."""
        found: dict[str, list] = {}
        for run in audit.read_runs(MlflowClient(self.uri), self.name, "trial"):
            found.setdefault(run.data.tags["trial_id"], []).append(run)
        return found

    def parents(self) -> list:
        return audit.read_runs(MlflowClient(self.uri), self.name, "sweep")

    def tune(self) -> dict[str, str]:
        """Status by trial id, from Tune's newest experiment state."""
        trials = audit.read_tune(self.runs / self.name)
        assert len(dict(trials)) == len(trials), "a trial is there twice"
        return {name: trial.status for name, trial in trials}


def new_database(folder: Path) -> Path:
    """A new MLflow database to copy: making its tables takes longer than a toy sweep."""
    folder.mkdir(exist_ok=True)
    connect(default_uri(folder))
    return folder / "mlflow.db"


def collect_garbage(uri: str) -> None:
    """`mlflow gc` on a database: what is deleted is gone for good."""
    from click.testing import CliRunner
    from mlflow.cli import cli

    asked, env = ["gc", "--backend-store-uri", uri], {"MLFLOW_TRACKING_URI": uri}
    done = CliRunner().invoke(cli, asked, env=env)
    assert done.exit_code == 0, done.output or done.exception


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Server:
    """`mlflow server` on a port of its own; its database outlives a stop."""

    def __init__(
        self,
        folder: Path,
        database: str | None = None,
        artifacts: str | None = None,
        workers: int = 1,
        options: Sequence[str] = (),
    ) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._database = database or f"sqlite:///{folder}/server.db"
        self._artifacts = artifacts or str(folder / "artifacts")
        self._workers, self._options = str(workers), options

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", self._workers]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", self._database]
        command += ["--artifacts-destination", self._artifacts, *self._options]
        env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # five processes fewer
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                command, env=env, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        answers(f"{self.uri}/health", self.folder / "server.log")

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def answers(url: str, log: Path) -> None:
    """Waits for a server to answer; raises TimeoutError with its log."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urlopen(url, timeout=2):
            return
        time.sleep(0.2)
    raise TimeoutError(log.read_text())


def wait_for(condition, process, seconds=120):
    """Until the condition holds; the process must not end before that."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "time-out"
        time.sleep(0.05)


def kill_when(toy: Toy, condition: Callable[[], object], *options: str) -> None:
    """Starts the driver and kills it alone (kill -9) as soon as the condition holds."""
    process = toy.start(*options)
    wait_for(condition, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def wait_for_death(pid: int, seconds: float = 60) -> None:
    """Until a process that is no child of this one has ended: a trial outlives its driver."""
    deadline = time.monotonic() + seconds
    while is_running(pid):
        assert time.monotonic() < deadline, "time-out"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


@contextlib.contextmanager
def ray_cluster(*cpus: int, options: Sequence[str] = ()) -> Iterator[dict[str, str]]:
    """A Ray cluster of its own, a node for each number of CPUs: the environment that joins it.

    `options`: of `ray start --head`.
    """
    folder = Path(tempfile.mkdtemp(prefix="ali-", dir="/tmp"))  # Ray wants a short path
    address = f"127.0.0.1:{free_port()}"
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, **token, "PATH": path, "RAY_TMPDIR": str(folder)}
    port = address.rpartition(":")[2]
    nodes = []
    try:
        for number, count in enumerate(cpus):
            start = ["ray", "start", f"--num-cpus={count}", "--block"]
            start += [f"--dashboard-agent-listen-port={free_port()}"]
            start += [f"--address={address}"] if number else ["--head", f"--port={port}", *options]
            with (folder / f"node-{number}.log").open("w") as out:
                node = subprocess.Popen(
                    start, env=env, stdout=out, stderr=out, start_new_session=True
                )
            nodes.append(node)
            if not number:
                wait_for(lambda: _listens(int(port)), node)
        env["RAY_ADDRESS"] = address
        wait = [sys.executable, CLUSTER / "nodes.py", "--wait", str(len(cpus))]
        subprocess.run(wait, env=env, check=True, stdout=subprocess.DEVNULL)
        yield env
    finally:
        for node in reversed(nodes):
            node.terminate()
            node.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def refused(script: Path, *options: object) -> str:
    """The one line that a script refuses its options with; it runs in this process."""
    err, argv = io.StringIO(), sys.argv
    sys.argv = [str(script), *map(str, options)]
    try:
        with contextlib.redirect_stderr(err):
            runpy.run_path(str(script), run_name="__main__")
    except SystemExit as stop:
        return error_line(stop.code, err.getvalue())
    finally:
        sys.argv = argv
    raise AssertionError(f"{script} took {options}")


def error_line(code: object, err: str) -> str:
    """The line of an error message that is to be one line, of the user's mistake."""
    assert code == 2, err
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


def image():
    return {"samples": np.zeros((8, 8, 3), np.uint8)}


def logged_steps(client, to, trial_id):
    run = tracking.find_trial(client, to, trial_id)
    return [m.step for m in client.get_metric_history(run.info.run_id, "val_error")]


def lost(client, to):
    """What a sweep's report says of records that MLflow lacks."""
    return tracking.lost_records(tracking.find_runs(client, to.experiment, kind="trial"))
