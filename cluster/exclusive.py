"""Runs a server on a folder that several machines can reach, on only one of them at a time.

    python cluster/exclusive.py FOLDER COMMAND…

Databases notice other servers only on their own machine: two heads on one folder destroy it. So
the folder has a lease, like a sweep in a bucket; a server that loses its lease is ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from ali.beside import beside
from ali.cli import main, postponed, terminable
from ali.errors import UserError
from sweeps.engine import mirror
from sweeps.engine.storage import Storage

SETTLE_SECONDS = 3.0  # if two machines take it at the same moment, the later has it by then
STOP_SECONDS = 60.0  # for a server to write what it holds
KILL_SECONDS = 5.0  # for a killed server to be gone, on a busy machine
SAFE = 2 / 3  # share of the lease's time without renewal after which the server is ended


class FolderLease(mirror.Lease):
    """The lease of a folder, kept while a server runs on it."""

    server: subprocess.Popen | None = None
    lost = False  # the folder was unavailable too long, so the server was ended

    def taken_over(self, what: str, holder: str) -> None:
        self.end_server()
        super().taken_over(what, holder)

    def end_server(self) -> None:
        """Returns once the server and all it has started have ended, or after KILL_SECONDS."""
        if self.server:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.server.pid, signal.SIGKILL)
                until = time.monotonic() + KILL_SECONDS
                while time.monotonic() < until:
                    os.killpg(self.server.pid, 0)
                    time.sleep(0.01)

    def keep(self, ended: threading.Event) -> None:
        """Renews it until `ended`; ends the server before another machine may take over."""
        renewed = time.monotonic()

        def watch(ended: threading.Event) -> None:  # a renewal may hang with its file system
            while not ended.wait(mirror.MIRROR_SECONDS / 10):
                if time.monotonic() > renewed + SAFE * mirror.LEASE_SECONDS:
                    self.lost = True
                    self.end_server()

        with beside(watch):
            while not ended.wait(mirror.MIRROR_SECONDS):
                begun = time.monotonic()
                with contextlib.suppress(OSError, UserError):  # the storage may come back
                    self.renew()
                    renewed = begun


def exclusive(folder: Path, command: list[str]) -> int:
    """Runs the command to its end; returns its exit code.

    Raises UserError if another machine has the folder, or it was unavailable for too long.
    """
    lease = FolderLease(Storage.at(folder.parent, folder.name), f"the database in {folder}")
    lease.take()
    time.sleep(SETTLE_SECONDS)
    lease.renew()
    with terminable(), contextlib.ExitStack() as start:
        start.enter_context(postponed())  # a signal before `_wait` would leave the server behind
        server = lease.server = subprocess.Popen(command, start_new_session=True)
        try:
            with beside(lease.keep):
                _wait(server, start)
        finally:
            with contextlib.suppress(OSError, UserError):  # it expires
                lease.drop()
    if lease.lost:
        raise UserError(
            f"{folder} could not be written for {SAFE * mirror.LEASE_SECONDS:g} s, so its server "
            "was ended before another machine may start one: start it again once the folder is back"
        )
    return server.returncode


def _wait(server: subprocess.Popen, start: contextlib.ExitStack) -> None:
    """Returns, or raises KeyboardInterrupt, when the server and all it has started have ended.

    `start` is closed first: until then signals were postponed.
    """
    try:
        start.close()
        server.wait()
    except KeyboardInterrupt:
        os.killpg(server.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(STOP_SECONDS)
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def run() -> int:
    if len(sys.argv) < 3:
        raise UserError("a folder and a command are needed: exclusive.py FOLDER COMMAND…")
    return exclusive(Path(sys.argv[1]).resolve(), sys.argv[2:])


if __name__ == "__main__":
    main(run)
