"""Where a sweep's checkpoints lie: a folder that all nodes share, or an object store's bucket."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pyarrow import ArrowInvalid, fs

from ali.errors import UserError
from ali.files import atomic_write

log = logging.getLogger(__name__)

MIRROR_SECONDS = 10.0
LEASE, LEASE_SECONDS = "driver.lease", 3 * MIRROR_SECONDS


def storage_address() -> str | None:
    """The storage of all sweeps where none is given: $ALI_STORAGE_PATH, or their folder."""
    return os.environ.get("ALI_STORAGE_PATH") or None


@dataclass(frozen=True)
class Storage:
    """One sweep's folder on a file system.

    Attributes:
        root: folder of all sweeps there, as the file system names it.
        remote: whether it is an object store, whose files are no local ones.
    """

    filesystem: fs.FileSystem
    root: str
    name: str
    remote: bool

    @classmethod
    def at(cls, address: str | Path, name: str) -> Storage:
        """Of a local folder, or an address that pyarrow knows: s3://bucket/runs, gs://bucket/runs.

        Raises UserError for an address that is none, or that holds a secret.
        """
        if "://" not in str(address):
            return cls(fs.LocalFileSystem(), str(Path(address).resolve()), name, remote=False)
        if urlsplit(str(address)).netloc.rpartition("@")[0] not in ("", "anonymous"):
            raise UserError(
                "--storage-path must not hold keys, which would be logged: "
                "put them into the environment (AWS_ACCESS_KEY_ID, …) or a role of the machine"
            )
        try:
            filesystem, root = fs.FileSystem.from_uri(str(address))
        except (ArrowInvalid, OSError) as error:
            raise UserError(f"--storage-path {address}: {_line(error)}") from error
        return cls(filesystem, root, name, remote=True)

    @property
    def folder(self) -> str:
        return f"{self.root}/{self.name}"

    def check(self) -> None:
        """Raises UserError where an object store cannot be written to."""
        if not self.remote:
            return
        probe = f"{self.root}/.probe-{self.name}"
        with _refusing(f"cannot write to --storage-path {self.root}"):
            self.filesystem.open_output_stream(probe).close()
            self.filesystem.delete_file(probe)

    def has(self, name: str) -> bool:
        """Whether a file of that name is in the sweep's folder. Raises UserError like `read`."""
        with _refusing(f"cannot read {self.folder}"):
            info = self.filesystem.get_file_info(f"{self.folder}/{name}")
        return info.type == fs.FileType.File

    def checkpoints(self, trial_id: str) -> list[str]:
        """Checkpoint folders of a trial, oldest first. Raises UserError like `read`."""
        with _refusing(f"cannot read {self.folder}"):
            return checkpoints(self.filesystem, f"{self.folder}/{trial_id}")

    def size(self, folder: str) -> int:
        """Bytes of all files in a folder."""
        selector = fs.FileSelector(folder, recursive=True)
        return sum(file.size or 0 for file in self.filesystem.get_file_info(selector))

    def delete(self, folder: str) -> None:
        with contextlib.suppress(OSError):  # it is tried again at the sweep's end
            self.filesystem.delete_dir(folder)

    @contextlib.contextmanager
    def local(self, folder: str) -> Iterator[Path]:
        """A folder as a local one, downloaded where it is none."""
        from ray.tune import Checkpoint

        with Checkpoint(folder, filesystem=self.filesystem).as_directory() as path:
            yield Path(path)

    def read(self, name: str) -> bytes | None:
        """What a file in the sweep's folder holds; None where there is none.

        Raises UserError where that cannot be told.
        """
        with _refusing(f"cannot read {self.folder}"):
            try:
                with self.filesystem.open_input_stream(f"{self.folder}/{name}") as source:
                    return source.read()
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Writes a file in the sweep's folder; of an object store all of it is there, or none."""
        with self.filesystem.open_output_stream(f"{self.folder}/{name}") as out:
            out.write(content)

    def upload(self, folder: Path, name: str) -> None:
        """Copies a local folder into the sweep's folder."""
        fs.copy_files(
            str(folder),
            f"{self.folder}/{name}",
            source_filesystem=fs.LocalFileSystem(),
            destination_filesystem=self.filesystem,
        )

    def fetch(self, file: Path) -> None:
        """Brings a file of the sweep's folder here, whole, if it is there.

        Raises UserError like `read`.
        """
        if (content := self.read(file.name)) is not None:
            _replace(file, content)

    def catch_up(self, file: Path) -> None:
        """Brings a file to which lines are added here, if there are more of them there.

        Raises UserError where each has lines that the other has not.
        """
        there, here = _whole_lines(self.read(file.name)), b""
        if file.exists():
            here = _whole_lines(file.read_bytes())
        if len(there) > len(here) and there.startswith(here):
            _replace(file, there)
        elif not here.startswith(there):
            raise UserError(
                f"sweep {self.name!r} has gone on in {file.parent} and, without it, in "
                f"{self.folder}: move the first away to go on with the second"
            )


def checkpoints(filesystem: fs.FileSystem, folder: str) -> list[str]:
    """Checkpoint folders of a trial whose folder is given, oldest first.

    By the files in them: where a listing is not recursive, Google's has no folders (arrow #35993).
    """
    files = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True, recursive=True))
    names = {file.path[len(folder) :].strip("/").partition("/")[0] for file in files}
    return sorted(f"{folder}/{name}" for name in names if name.startswith("checkpoint_"))


class _Lease:
    """What says in a bucket that a sweep's driver lives: a small file, written anew all the time.

    No clocks are compared: another driver watches for LEASE_SECONDS whether the file changes.
    """

    def __init__(self, storage: Storage, what: str) -> None:
        self._storage, self._what = storage, what
        self._token, self._renewals = secrets.token_hex(8), 0

    def take(self) -> None:
        """Raises UserError where another driver has it, or where it cannot be written."""
        if (lease := self._storage.read(LEASE)) is not None:
            driver = _first_line(lease)
            print(
                f"{self._what} was run by {driver}, which has not said that it ended: "
                f"watching for {LEASE_SECONDS:g} s whether it goes on",
                flush=True,
            )
            until = time.monotonic() + LEASE_SECONDS
            while self._storage.read(LEASE) == lease and time.monotonic() < until:
                time.sleep(MIRROR_SECONDS / 10)
            if self._storage.read(LEASE) not in (lease, None):
                raise UserError(f"{self._what} is being run by {driver}: wait for it, or stop it")
        with _refusing(f"cannot write to {self._storage.folder}"):
            self._write()

    def renew(self) -> None:
        """Ends the process, like a kill, where another driver took it for dead."""
        lease = self._storage.read(LEASE)
        if lease is not None and self._token.encode() not in lease:
            os.write(2, f"error: {self._what} was taken over by {_first_line(lease)}\n".encode())
            os._exit(1)  # the kernel ends what Ray has started here
        self._write()

    def drop(self) -> None:
        self._storage.filesystem.delete_file(f"{self._storage.folder}/{LEASE}")

    def _write(self) -> None:
        self._renewals += 1
        driver = f"process {os.getpid()} on {socket.gethostname()}"
        self._storage.write(LEASE, f"{driver}\n{self._token} {self._renewals}\n".encode())


class Mirror:
    """Within, one driver alone has a sweep's bucket, with copies of local files in it.

    The copies are seconds behind at most: with them a sweep goes on from another machine when its
    own is lost. A bucket that is away is tried again; the sweep does not wait for it.

    Args:
        what: the sweep, in words.
        journal: a file that only grows; its copy takes its place where that has more.
        others: files that are replaced as a whole.
    """

    def __init__(self, storage: Storage, what: str, journal: Path, *others: Path) -> None:
        self.storage, self._lease = storage, _Lease(storage, what)
        self._journal, self._files = journal, (journal, *others)
        self._wake, self._ended = threading.Event(), False
        self._sizes: dict[Path, int] = {}  # of the files, as copied
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Mirror:
        """Raises UserError where another driver has the bucket, or `Storage.catch_up` does."""
        if self.storage.remote:
            self._lease.take()
            self.storage.catch_up(self._journal)
            self._thread = threading.Thread(target=self._follow, name="mirror", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread:
            self._ended = True
            self._wake.set()
            self._thread.join()

    def now(self) -> None:
        """Copies at once, in the background."""
        self._wake.set()

    def _follow(self) -> None:
        away = last = False
        while not last:
            last = self._ended
            try:
                self._lease.renew()
                self._copy()
                if last:
                    self._lease.drop()
                away = False
            except (OSError, UserError) as error:
                if not away:
                    log.warning("no copy of the journal was written: %s", _line(error))
                away = True
            self._wake.wait(0 if last else MIRROR_SECONDS)
            self._wake.clear()

    def _copy(self) -> None:
        for file in self._files:
            size = file.stat().st_size if file.exists() else 0
            if size != self._sizes.get(file, 0):
                self.storage.write(file.name, file.read_bytes())
                self._sizes[file] = size


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Raises UserError for an OSError within: what could not be done, and why."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: {_line(error)}") from error


def _replace(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as partial:
        partial.write_bytes(content)


def _whole_lines(content: bytes | None) -> bytes:
    return content[: content.rfind(b"\n") + 1] if content else b""


def _first_line(content: bytes) -> str:
    return content.decode().partition("\n")[0]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
