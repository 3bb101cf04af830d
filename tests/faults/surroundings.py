"""Faults of what a sweep runs in: its terminal, its scheduler, a bucket, a proxy, a server."""

from __future__ import annotations

import contextlib
import http.server
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

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


def stop_the_reader(sweep: SweepUnderTest) -> None:
    """Who reads stdout and stderr stops reading, as less does, and Ctrl-S."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(2**12))
    os.set_blocking(writer, True)
    with open(writer, "wb") as out:
        sweep.start_driver(out=out)
    sweep.wait_for_end()
    os.close(reader)


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
        lambda: _terminate(list(_family(sweep.process.pid))),
    )


def _terminate(processes: list[int]) -> None:
    for pid in processes:
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
        self._open: list[socket.socket] = []
        self.open()

    def open(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def close(self) -> None:
        for one in (self._listening, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()

    def _accept(self, listening: socket.socket) -> None:
        host, port = self._to.split(":")
        with contextlib.suppress(OSError):
            while True:
                here, there = listening.accept()[0], socket.create_connection((host, int(port)))
                self._open += [here, there]
                for pair in ((here, there), (there, here)):
                    threading.Thread(target=self._copy, args=pair, daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, destination: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(2**16):
                destination.sendall(data)
            destination.shutdown(socket.SHUT_WR)


def take_bucket_away(sweep: SweepUnderTest) -> None:
    """For 45 seconds the bucket refuses connections; then it stops answering for as long."""
    store = ObjectStore(sweep.folder)
    relay = Relay(store.address)
    address = f"s3://{BUCKET}/runs?scheme=http&endpoint_override=127.0.0.1:{relay.port}"
    try:
        sweep.env |= {**KEYS, "ALI_STORAGE_PATH": address}
        os.environ.update(KEYS)
        sweep.start_driver()
        sweep.wait_for_epochs(0.2)
        relay.close()
        time.sleep(45)
        relay.open()
        sweep.wait_for_epochs(0.7)
        store.process.send_signal(signal.SIGSTOP)
        time.sleep(45)
        store.process.send_signal(signal.SIGCONT)
        sweep.wait_for_end()
        storage = Storage.at(store.uri, sweep.name)  # audit looks at the sweep's folder
        tables = [key for key in store.keys(f"runs/{sweep.name}/") if "experiment_state-" in key]
        storage.fetch(sweep.runs / sweep.name / max(tables).rpartition("/")[2])
    finally:
        store.process.kill()
        store.process.wait()


# A proxy, a server


class _Refusing(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(403)

    do_POST = do_CONNECT = do_GET

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def proxy_in_between(sweep: SweepUnderTest) -> None:
    """The environment names a proxy, which refuses every address of this machine."""
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    sweep.env |= dict.fromkeys(names, f"http://127.0.0.1:{proxy.server_port}")
    sweep.env |= {"no_proxy": "", "NO_PROXY": ""}
    log_to_server(sweep)
    sweep.start_driver()
    sweep.wait_for_end()
    proxy.shutdown()


def fill_artifact_store(sweep: SweepUnderTest) -> None:
    """The disk of the server's artifacts is full for good; that of its database is not."""
    store = sweep.folder / "artifacts"  # as Server has it
    store.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", store], check=True)
    sweep.held.callback(subprocess.run, ["umount", "-l", store], check=True)
    with contextlib.suppress(OSError), (store / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**12))
    log_to_server(sweep)
    sweep.options += ("--outage-seconds", "10")
    sweep.start_driver()
    sweep.wait_for_end()


def log_to_server(sweep: SweepUnderTest) -> None:
    """Has the sweep log to an MLflow server of its own."""
    server = Server(sweep.folder)
    server.start()
    sweep.held.callback(server.stop)
    sweep.server = server.uri
    sweep.options += ("--tracking-uri", server.uri)


FAULTS = {
    16: Fault("stdout's and stderr's reader gone", take_readers_away),
    17: Fault("their reader reads no more", stop_the_reader),
    18: Fault("their disk full", fill_output),
    19: Fault("SIGHUP 2 times, resumed", close_terminal, one_at_a_time=True),
    20: Fault("SIGTERM to the group, to all; resumed", terminate_all),
    21: Fault("bucket refuses 45 s, silent 45 s", take_bucket_away, seconds=1),
    22: Fault("a proxy that refuses this machine", proxy_in_between),
    23: Fault("MLflow's artifact store full", fill_artifact_store),
}
