"""Where a sweep's checkpoints lie: a folder that all nodes share, or an object store's bucket."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pyarrow import ArrowInvalid, fs

from ali.errors import UserError

log = logging.getLogger(__name__)

MIRROR_SECONDS = 10.0


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
        if urlsplit(str(address)).username is not None:
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
        try:
            self.filesystem.open_output_stream(probe).close()
            self.filesystem.delete_file(probe)
        except OSError as error:
            raise UserError(
                f"cannot write to --storage-path {self.root}: {_line(error)}"
            ) from error

    def has(self, name: str) -> bool:
        """Whether a file of that name is in the sweep's folder."""
        return self.filesystem.get_file_info(f"{self.folder}/{name}").type == fs.FileType.File

    def checkpoints(self, trial_id: str) -> list[str]:
        """Checkpoint folders of a trial, oldest first. Raises UserError where none can be read."""
        try:
            return checkpoints(self.filesystem, f"{self.folder}/{trial_id}")
        except OSError as error:
            raise UserError(f"cannot read {self.folder}: {_line(error)}") from error

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

    def put(self, file: Path) -> None:
        """Copies a file into the sweep's folder; of an object store all of it is there, or none."""
        with self.filesystem.open_output_stream(f"{self.folder}/{file.name}") as out:
            out.write(file.read_bytes())

    def get(self, file: Path) -> bool:
        """Copies a file of that name from the sweep's folder, whole; False where there is none.

        Raises UserError where that cannot be told.
        """
        try:
            with self.filesystem.open_input_stream(f"{self.folder}/{file.name}") as source:
                data = source.read()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise UserError(f"cannot read {self.folder}: {_line(error)}") from error
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(file.name + ".part")
        partial.write_bytes(data)
        os.replace(partial, file)
        return True


def checkpoints(filesystem: fs.FileSystem, folder: str) -> list[str]:
    """Checkpoint folders of a trial whose folder is given, oldest first."""
    found = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    return sorted(info.path for info in found if info.base_name.startswith("checkpoint_"))


class Mirror:
    """Within, keeps copies of local files in a sweep's remote storage, seconds behind at most.

    With them a sweep goes on from another machine when its own is lost. A storage that is away is
    tried again; the sweep does not wait for it.
    """

    def __init__(self, storage: Storage, *files: Path) -> None:
        self._storage, self._files = storage, files
        self._wake, self._ended = threading.Event(), False
        self._sizes: dict[Path, int] = {}  # as copied; the files only grow
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Mirror:
        if self._storage.remote:
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
                self._copy()
                away = False
            except OSError as error:
                if not away:
                    log.warning("no copy of the journal was written: %s", _line(error))
                away = True
            self._wake.wait(0 if last else MIRROR_SECONDS)
            self._wake.clear()

    def _copy(self) -> None:
        for file in self._files:
            size = file.stat().st_size if file.exists() else 0
            if size != self._sizes.get(file, 0):
                self._storage.put(file)
                self._sizes[file] = size


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
