"""Faults of what a sweep runs in: its terminal, its scheduler, a bucket, a proxy, a server."""

from __future__ import annotations

import contextlib
import http.server
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from mlflow import MlflowClient

from ali.beside import beside
from sweeps.engine.storage import Storage
from tests.faults.sweep import Fault, SweepUnderTest
from tests.integration.harness import Server, free_port
from tests.integration.object_store import BUCKET, KEYS, ObjectStore

STOP_SECONDS = 60  # within which a sweep that is asked to has stopped


# The terminal


def take_readers_away(sweep: SweepUnderTest) -> None:
    """Who reads stdout and stderr reads three lines."""
    command, null = ["head", "-3"], subprocess.DEVNULL
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=null) as reader:
        assert reader.stdin is not None
        sweep.start_driver(out=reader.stdin)
        reader.stdin.close()
        sweep.wait_for_epochs(0.5)
        if reader.poll() is None:
            raise RuntimeError("the sweep has printed fewer than three lines")
        sweep.wait_for_end()


@contextlib.contextmanager
def no_reader() -> Iterator[IO]:
    """Output whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb", buffering=0) as out:
        yield out


@contextlib.contextmanager
def stopped_reader(sweep: SweepUnderTest) -> Iterator[IO]:
    """Output whose reader stops reading, as less does, and Ctrl-S."""
    reader, writer = os.pipe()
    sweep.held.callback(os.close, reader)
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(2**12))
    os.set_blocking(writer, True)
    with open(writer, "wb") as out:
        yield out


def stop_the_reader(sweep: SweepUnderTest) -> None:
    """Who reads stdout and stderr stops reading."""
    with stopped_reader(sweep) as out:
        sweep.start_driver(out=out)
    sweep.wait_for_end()


def fill_output(sweep: SweepUnderTest) -> None:
    with open("/dev/full", "w") as out:
        sweep.start_driver(out=out)
    sweep.wait_for_end()


def close_terminal(sweep: SweepUnderTest) -> None:
    """SIGHUP to the driver, and another to its process group."""

    def send() -> None:
        sweep.process.send_signal(signal.SIGHUP)
        os.killpg(sweep.process.pid, signal.SIGHUP)

    _stop_and_resume(sweep, send, send)


# The scheduler


def terminate_all(sweep: SweepUnderTest) -> None:
    """SIGTERM to the process group, then to each process that the driver has started, as well."""
    _stop_and_resume(
        sweep,
        lambda: os.killpg(sweep.process.pid, signal.SIGTERM),
        lambda: terminate_family(sweep),
    )


def terminate_family(sweep: SweepUnderTest) -> None:
    """SIGTERM to the driver and to each process that it has started."""
    for pid in list(_family(sweep.process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _stop_and_resume(sweep: SweepUnderTest, *ways: Callable[[], object]) -> None:
    sweep.start_driver()
    for turn, send in enumerate(ways, start=1):
        sweep.wait_for_epochs(0.3 * turn)
        send()
        code = sweep.process.wait(timeout=STOP_SECONDS)
        running = [run for run in sweep.parents() if run.info.status == "RUNNING"]
        if code != 130 or running:
            raise RuntimeError(f"exit code {code}, {len(running)} RUNNING: {sweep.output()[-600:]}")
        sweep.start_driver()
    sweep.wait_for_end()


def _family(pid: int) -> Iterator[int]:
    """A process, its children, theirs, …"""
    yield pid
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/task") as threads:
        for thread in threads:
            with open(f"{thread.path}/children") as children:
                for child in children.read().split():
                    yield from _family(int(child))


# A bucket


class Relay:
    """A port before another one, which can be closed for a while: connections are refused."""

    def __init__(self, to: str) -> None:
        self._to, self.port = to, free_port()
        self._open: set[socket.socket] = set()
        self.open()

    def open(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def close(self) -> None:
        for one in (self._listening, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(
                    target=self._relay, args=listening.accept()[:1], daemon=True
                ).start()

    def _relay(self, here: socket.socket) -> None:
        """One connection, to its end."""
        host, port = self._to.split(":")
        with (
            here,
            contextlib.suppress(OSError),
            socket.create_connection((host, int(port))) as there,
        ):
            self._open |= {here, there}
            with beside(lambda _: self._copy(there, here)):
                self._copy(here, there)
            self._open -= {here, there}

    @staticmethod
    def _copy(source: socket.socket, destination: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(2**16):
                destination.sendall(data)
            destination.shutdown(socket.SHUT_WR)


class Bucket:
    """A bucket that a sweep has its checkpoints in, and that can be taken away."""

    def __init__(self, sweep: SweepUnderTest) -> None:
        self._sweep, self._store = sweep, ObjectStore(sweep.folder)
        sweep.held.callback(self._store.process.wait)
        sweep.held.callback(self._store.process.kill)
        self._relay = Relay(self._store.address)
        where = f"scheme=http&endpoint_override=127.0.0.1:{self._relay.port}"
        sweep.env |= {**KEYS, "ALI_STORAGE_PATH": f"s3://{BUCKET}/runs?{where}"}
        os.environ.update(KEYS)

    def refuse(self, seconds: float = 45) -> None:
        """For so long it refuses connections."""
        self._relay.close()
        time.sleep(seconds)
        self._relay.open()

    def be_silent(self, seconds: float = 45) -> None:
        """For so long it takes connections, and does not answer."""
        self._store.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self._store.process.send_signal(signal.SIGCONT)

    def fetch_table(self) -> None:
        """Copies Tune's table of trials to where audit looks for it."""
        sweep, store = self._sweep, self._store
        keys = store.keys(f"runs/{sweep.name}/")
        newest = max(key for key in keys if "experiment_state-" in key)
        storage = Storage.at(store.uri, sweep.name)
        storage.fetch(sweep.runs / sweep.name / newest.rpartition("/")[2])


def take_bucket_away(sweep: SweepUnderTest) -> None:
    """For 45 seconds the bucket refuses connections; then it stops answering for as long."""
    bucket = Bucket(sweep)
    sweep.start_driver()
    sweep.wait_for_epochs(0.2)
    bucket.refuse()
    sweep.wait_for_epochs(0.7)
    bucket.be_silent()
    sweep.wait_for_end()
    bucket.fetch_table()


# A proxy, a server


class _Refusing(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(403)

    do_POST = do_CONNECT = do_GET

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def proxy_in_between(sweep: SweepUnderTest) -> None:
    """The environment names a proxy, which refuses every address of this machine."""
    name_refusing_proxy(sweep)
    log_to_server(sweep)
    sweep.start_driver()
    sweep.wait_for_end()


def name_refusing_proxy(sweep: SweepUnderTest) -> None:
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    sweep.held.callback(proxy.shutdown)
    names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    sweep.env |= dict.fromkeys(names, f"http://127.0.0.1:{proxy.server_port}")
    sweep.env |= {"no_proxy": "", "NO_PROXY": ""}


def fill_artifact_store(sweep: SweepUnderTest) -> None:
    """The disk of the server's artifacts is full for good; that of its database is not."""
    fill(small_artifact_store(sweep))
    log_to_server(sweep)
    sweep.options += ("--outage-seconds", "10")
    sweep.start_driver()
    sweep.wait_for_end()


def small_artifact_store(sweep: SweepUnderTest, size: str = "64k") -> Path:
    """A small disk for the artifacts of the sweep's server."""
    store = sweep.folder / "artifacts"  # as Server has it
    store.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", store], check=True)
    sweep.held.callback(subprocess.run, ["umount", "-l", store], check=True)
    return store


def fill(folder: Path) -> Path:
    """Fills a disk; the file that does."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**12))
    return filler


def log_to_server(sweep: SweepUnderTest) -> Server:
    """Has the sweep log to an MLflow server of its own."""
    server = Server(sweep.folder)
    server.start()
    sweep.held.callback(server.stop)
    sweep.server = server.uri
    sweep.options += ("--tracking-uri", server.uri)
    return server


def delete_in_mlflow(sweep: SweepUnderTest, what: str, for_good: bool) -> None:
    """Somebody deletes a trial's run, the sweep's, or the experiment; `mlflow gc` may follow."""
    client, parents = MlflowClient(sweep.uri), sweep.parents()
    if not parents:  # deleted before, and not restored yet
        return
    parent = parents[0]
    if what == "experiment":
        client.delete_experiment(parent.info.experiment_id)
    else:
        running = [one for found in sweep.mlflow().values() for one in found]
        chosen = parent if what == "sweep" or not running else random.choice(running)
        client.delete_run(chosen.info.run_id)
    if for_good:
        store = f"sqlite:///{sweep.folder}/server.db" if sweep.server else sweep.uri
        command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", store]
        command += ["--tracking-uri", sweep.uri]
        subprocess.run(command, check=True, capture_output=True)


def collect_garbage(sweep: SweepUnderTest) -> None:
    """A trial's run, later the whole experiment, are deleted for good while the sweep runs."""
    sweep.start_driver()
    for per_trial, what in ((0.3, "trial"), (1.0, "experiment")):
        sweep.wait_for_epochs(per_trial)
        delete_in_mlflow(sweep, what, for_good=True)
    sweep.wait_for_end()


FAULTS = {
    16: Fault("stdout's and stderr's reader gone", take_readers_away),
    17: Fault("their reader reads no more", stop_the_reader),
    18: Fault("their disk full", fill_output),
    19: Fault("SIGHUP 2 times, resumed", close_terminal, one_at_a_time=True),
    20: Fault("SIGTERM to the group, to all; resumed", terminate_all),
    21: Fault("bucket refuses 45 s, silent 45 s", take_bucket_away, seconds=1),
    22: Fault("a proxy that refuses this machine", proxy_in_between),
    23: Fault("MLflow's artifact store full", fill_artifact_store),
    24: Fault("a run, the experiment: `mlflow gc`", collect_garbage, seconds=2),
}
