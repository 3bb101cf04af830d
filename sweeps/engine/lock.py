"""One process at a time: the lock of a sweep's folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ali.errors import UserError

LOCK = "driver.lock"


class LockedError(UserError):
    """Another process holds the lock."""


@contextlib.contextmanager
def driver_lock(folder: Path, what: str) -> Iterator[None]:
    """Holds a folder's lock; the kernel releases it with the process, however that ends.

    Raises LockedError, naming the process that holds it, if another one does.
    """
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise LockedError(f"{what} is being run by {holder}: wait for it, or stop it") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
