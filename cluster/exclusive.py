"""Runs a server on a folder that several machines can reach, as the only one of them.

    python cluster/exclusive.py FOLDER COMMAND…

Databases see other servers on their own machine alone: two heads on one folder destroy it. So the
folder has a lease, like a sweep in a bucket, and a server whose lease was taken over is ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ali.cli import main, terminable
from ali.errors import UserError
from sweeps.engine import mirror
from sweeps.engine.storage import Storage

SETTLE_SECONDS = 3.0  # of two machines that take it in the same moment, the later has it by then
STOP_SECONDS = 60.0  # for a server to write what it holds


class FolderLease(mirror.Lease):
    """The lease of a folder, kept while a server runs on it."""

    server: subprocess.Popen | None = None

    def taken_over(self, what: str, holder: str) -> None:
        if self.server:
            os.killpg(self.server.pid, signal.SIGKILL)
        super().taken_over(what, holder)


def exclusive(folder: Path, command: list[str]) -> int:
    """Runs the command to its end; returns its exit code.

    Raises UserError if another machine has the folder.
    """
    lease = FolderLease(Storage.at(folder.parent, folder.name), f"the database in {folder}")
    lease.take()
    time.sleep(SETTLE_SECONDS)
    lease.renew()
    with terminable(), subprocess.Popen(command, start_new_session=True) as server:
        lease.server = server
        try:
            while server.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.wait(mirror.MIRROR_SECONDS)
                with contextlib.suppress(OSError, UserError):  # storage that is away comes back
                    lease.renew()
        except KeyboardInterrupt:
            os.killpg(server.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(STOP_SECONDS)
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            lease.drop()
    return server.returncode


def run() -> int:
    if len(sys.argv) < 3:
        raise UserError("a folder and a command are needed: exclusive.py FOLDER COMMAND…")
    return exclusive(Path(sys.argv[1]).resolve(), sys.argv[2:])


if __name__ == "__main__":
    main(run)
