"""One process at a time: the lock of the folder of a sweep or a training."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from ali.beside import beside
from ali.errors import UserError
from ali.files import open_regular
from ali.output import write_now

LOCK = "driver.lock"
TOUCH_SECONDS = 10.0  # how often its holder touches the file
DEAD_SECONDS = 3 * TOUCH_SECONDS  # untouched for so long, its holder counts as dead
SETTLE_SECONDS = 2.0  # in which another process that has just found the file free writes to it
UNLOCKED = "unlocked"  # ends the file where its holder could not lock it


class LockedError(UserError):
    """Another process holds the lock."""


@contextlib.contextmanager
def folder_lock(folder: Path, what: str) -> Iterator[None]:
    """Holds a folder's lock; the kernel releases it with the process, however that ends.

    On a file system without locks (Lustre without `flock`, NFS without its lock service) the file
    itself is the lock: it names its holder, which touches it while alive. Raises LockedError,
    naming the process that holds it, if another one does.
    """
    path, lacking = folder / LOCK, ""
    with open_regular(path, "ab+", buffering=0) as file:
        before = _read(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _locked(what, _read(path)[0]) from None
        except OSError as error:
            lacking = error.strerror or str(error)
        if before[0] and (lacking or before[0].endswith(UNLOCKED)):

            def change() -> str | None:
                return None if (now := _read(path)) == before else now[0]

            refuse_if_alive(what, before[0], DEAD_SECONDS, TOUCH_SECONDS / 10, change)
        mine = f"{this_process()}\n{secrets.token_hex(8)} "
        mine += UNLOCKED if lacking else "locked"
        try:
            file.truncate(0)
            file.write(mine.encode())
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        if lacking:
            print(
                f"note: {folder} is on a file system without locks ({lacking.lower()}): {LOCK}, "
                f"touched every {TOUCH_SECONDS:g} s, stands in. Not protected: a process that is "
                f"stopped for {DEAD_SECONDS:g} s (Ctrl-Z) counts as dead; if another has taken "
                "over when it goes on, both write until it has noticed",
                flush=True,
            )
            time.sleep(SETTLE_SECONDS)
            if (now := _read(path)[0]) != mine:
                raise _locked(what, now)

        def touch(ended: threading.Event) -> None:
            while not ended.wait(TOUCH_SECONDS):
                with contextlib.suppress(OSError):
                    if (now := _read(path)[0]) != mine:
                        end_taken_over(what, holder_of(now))
                    os.utime(file.fileno())

        try:
            with beside(touch):
                yield
        finally:
            with contextlib.suppress(OSError):
                if _read(path)[0] == mine:
                    file.truncate(0)


def this_process() -> str:
    """How a lock or a lease names this process as its holder."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def end_taken_over(what: str, holder: str) -> NoReturn:
    """Ends this process as a kill does: another one took it for dead."""
    write_now(2, f"error: {what} was taken over by {holder}\n")
    os._exit(1)  # the kernel ends what Ray has started here


def refuse_if_alive(
    what: str, holder: str, seconds: float, poll_seconds: float, change: Callable[[], str | None]
) -> None:
    """Raises LockedError if a holder that did not give up its file shows a sign of life.

    `change` is None while the file is as it was, "" if it has been given up, else its new content.
    """
    print(
        f"{what} was run by {holder_of(holder)}, which did not end properly: "
        f"checking for {seconds:g} s whether it is still alive",
        flush=True,
    )
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(poll_seconds)
        if (now := change()) is not None:
            if now:
                raise _locked(what, now)
            return  # it has just ended


def _locked(what: str, content: str) -> LockedError:
    return LockedError(f"{what} is being run by {holder_of(content)}: wait for it, or stop it")


def holder_of(content: str) -> str:
    """Who holds a lock or a lease with this content."""
    return content.partition("\n")[0] or "another process"


def _read(path: Path) -> tuple[str, int]:
    """Content and time of change; opened anew, since NFS asks its server only then."""
    with path.open("rb") as file:
        return file.read().decode(errors="replace"), os.fstat(file.fileno()).st_mtime_ns
