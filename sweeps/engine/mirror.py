"""A sweep's files, copied to its bucket while it runs, and the lease that keeps drivers apart."""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from ali.beside import beside
from ali.errors import UserError
from ali.lock import end_taken_over, holder_of, refuse_if_alive, this_process
from sweeps.engine.retry import AwayError, Retry
from sweeps.engine.storage import Storage, as_user_error, one_line

log = logging.getLogger(__name__)

MIRROR_SECONDS = 10.0
UPLOAD_SHARE = 0.1  # of the time, at most, in which a journal that is slow to upload is uploaded
REST_SECONDS = 60.0  # longest pause for that
LEASE, LEASE_SECONDS = "driver.lease", 3 * MIRROR_SECONDS


class Lease:
    """A small file in a bucket that a sweep's driver keeps rewriting while it is alive.

    No clocks are compared: another driver watches for LEASE_SECONDS whether the file changes.
    """

    def __init__(self, storage: Storage, what: str) -> None:
        self._storage, self._what = storage, what
        self._token, self._renewals = secrets.token_hex(8), 0
        self._renewing = threading.Lock()

    def take(self) -> None:
        """Raises UserError if another driver has it, or if it cannot be written."""
        if (lease := self._storage.read(LEASE)) is not None:

            def change() -> str | None:
                now = self._storage.read(LEASE)
                return None if now == lease else _text(now or b"")

            refuse_if_alive(self._what, _text(lease), LEASE_SECONDS, MIRROR_SECONDS / 10, change)
        with as_user_error(f"cannot write to {self._storage.folder}"):
            self._write()

    def renew(self) -> None:
        """Ends the process, like a kill, if another driver has taken over."""
        with self._renewing:
            if (other := self._others()) is not None:
                self.taken_over(self._what, holder_of(_text(other)))
            self._write()

    def taken_over(self, what: str, holder: str) -> None:
        end_taken_over(what, holder)

    def drop(self) -> None:
        """Deletes the lease, unless another driver has it."""
        if self._others() is None:
            self._storage.filesystem.delete_file(f"{self._storage.folder}/{LEASE}")

    def _others(self) -> bytes | None:
        """Another driver's lease; None if it is this driver's, or there is none."""
        lease = self._storage.read(LEASE)
        return lease if lease is not None and self._token.encode() not in lease else None

    def _write(self) -> None:
        self._renewals += 1
        self._storage.write(LEASE, f"{this_process()}\n{self._token} {self._renewals}\n".encode())


class JournalMirror:
    """Copies a sweep's files to its bucket; in the block, no other driver has the bucket.

    The copies are MIRROR_SECONDS old at most, or, by UPLOAD_SHARE, ten times what an upload takes,
    but no more than REST_SECONDS longer: with them a sweep can resume on another machine if its own
    is lost. If the bucket cannot be reached, copying is retried; the sweep does not wait for it.

    Args:
        what: the sweep, in words.
        journal: a file that only grows; replaced by its copy if that has more lines.
        others: files that are replaced as a whole.
        logs: files that only grow; their copies' lines are added first.
        outage_seconds: how long the end waits for an unavailable bucket.
    """

    def __init__(
        self,
        storage: Storage,
        what: str,
        journal: Path,
        *others: Path,
        logs: Sequence[Path] = (),
        outage_seconds: float = 0.0,
    ) -> None:
        self.storage, self._lease = storage, Lease(storage, what)
        self._journal, self._files, self._logs = journal, (journal, *others, *logs), logs
        self._wake, self._ended = threading.Event(), False
        self._copying = threading.Lock()
        self._elsewhere = storage.remote and not storage.is_at(journal.parent)
        self._copied: dict[Path, tuple[int, ...]] = {}  # the files' `_version`
        self._rested = 0.0  # when uploads have had no more than their share; time.monotonic()
        self._thread: threading.Thread | None = None
        self._renewed = contextlib.ExitStack()
        self._retry = Retry(f"the storage {storage.folder}", outage_seconds)

    def __enter__(self) -> JournalMirror:
        """Raises UserError if another driver has the bucket, or if `Storage.catch_up` does."""
        if self._elsewhere:
            self._lease.take()
            self.storage.catch_up(self._journal)
            for log_file in self._logs:
                self.storage.join_lines(log_file)
            self._renewed.enter_context(beside(self._keep_lease))
            self._thread = threading.Thread(target=self._follow, name="mirror", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if self._thread:
            self._ended = True
            self._wake.set()
            self._thread.join()
            try:
                with self._renewed:
                    if isinstance(error, AwayError):  # has waited already
                        self._renew_and_copy()
                    else:
                        self._retry(self._renew_and_copy)
                self._lease.drop()
            except (OSError, UserError) as problem:
                log.warning("the storage lacks the end of the journal: %s", one_line(problem))

    def now(self) -> None:
        """Copies at once, in the background."""
        self._wake.set()

    def copy(self) -> None:
        """Copies all before it returns. Raises OSError or UserError if it cannot."""
        if self._elsewhere:
            self._renew_and_copy()

    def _keep_lease(self, ended: threading.Event) -> None:
        """Renews the lease, also during a copy."""
        while not ended.wait(MIRROR_SECONDS):
            with contextlib.suppress(OSError, UserError):  # `_follow` says so
                self._lease.renew()

    def _follow(self) -> None:
        away = False
        while not self._ended:
            try:
                self._renew_and_copy()
                away = False
            except (OSError, UserError) as error:
                if not away:
                    log.warning("no copy of the journal was written: %s", one_line(error))
                away = True
            self._wait()

    def _wait(self) -> None:
        """Waits until the next copy is due, or asked for."""
        due = time.monotonic() + MIRROR_SECONDS
        while (left := max(due, self._rested) - time.monotonic()) > 0:  # `copy` may put it off
            if self._wake.wait(left):
                break
        self._wake.clear()

    def _renew_and_copy(self) -> None:
        with self._copying:
            self._lease.renew()
            began = time.monotonic()
            if self._copy_changed():
                now = time.monotonic()
                rest = (now - began) * (1 / UPLOAD_SHARE - 1)
                self._rested = now + min(rest, REST_SECONDS)

    def _copy_changed(self) -> bool:
        """Whether anything had to be copied."""
        before = dict(self._copied)
        for file in self._files:
            version = _version(file)
            if version and version != self._copied.get(file):
                self.storage.write(file.name, file.read_bytes())
                self._copied[file] = version
        return self._copied != before


def _version(file: Path) -> tuple[int, ...]:
    """Changes whenever the file has been written to or replaced; empty if there is none."""
    if not file.exists():
        return ()
    status = file.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _text(content: bytes) -> str:
    return content.decode(errors="replace")
