"""Where a sweep's checkpoints are: a folder that all nodes share, or a bucket."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pyarrow import ArrowInvalid, fs

from ali.errors import UserError
from ali.files import atomic_write, existing_part, make_folder, refuse_address
from sweeps.engine.retry import awaited

# With pyarrow's defaults, a call to a bucket that accepts connections but never answers waits
# 100 s, at Google 15 minutes. One attempt there still takes 2: pyarrow has no option for it.
ATTEMPTS, ATTEMPT_SECONDS, RETRY_SECONDS = 3, 5.0, 15


class ImpatientS3(fs.S3FileSystem):
    """S3 whose unanswered calls end after some ATTEMPTS · ATTEMPT_SECONDS, in trials, too."""

    def __init__(self, **options: Any) -> None:
        attempts = fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS)
        super().__init__(**options, retry_strategy=attempts)

    @classmethod
    def like(cls, filesystem: fs.S3FileSystem) -> ImpatientS3:
        """The same place, with shorter timeouts."""
        options = filesystem.__reduce__()[1][0]
        seconds = dict.fromkeys(("connect_timeout", "request_timeout"), ATTEMPT_SECONDS)
        return cls(**options | seconds)

    def __reduce__(self) -> tuple[Any, ...]:
        return ImpatientS3.like, (fs.S3FileSystem(**super().__reduce__()[1][0]),)


@dataclass(frozen=True)
class Storage:
    """One sweep's folder on a file system.

    Attributes:
        root: folder of all sweeps there, as the file system names it.
        remote: whether it is a bucket of an object store rather than a local folder.
    """

    filesystem: fs.FileSystem
    root: str
    name: str
    remote: bool

    @classmethod
    def at(cls, address: str | Path, name: str) -> Storage:
        """At a local folder, or an address that pyarrow knows: s3://bucket/runs, gs://bucket/runs.

        Raises UserError for an invalid address, or one that holds a secret.
        """
        if "://" not in str(address):
            refuse_address(address, "--storage-path", "a bucket is s3://BUCKET/FOLDER or gs://…")
            here = Path(address).expanduser().resolve()
            return cls(fs.LocalFileSystem(), str(here), name, remote=False)
        if urlsplit(str(address)).netloc.rpartition("@")[0] not in ("", "anonymous"):
            raise UserError(
                "--storage-path must not hold keys, which would be logged: "
                "put them into the environment (AWS_ACCESS_KEY_ID, …) or a role of the machine"
            )
        limit = f"retry_limit_seconds={RETRY_SECONDS}"
        if urlsplit(str(address)).scheme in ("gs", "gcs") and "retry_limit" not in str(address):
            address = f"{address}{'&' if '?' in str(address) else '?'}{limit}"
        try:
            filesystem, root = fs.FileSystem.from_uri(str(address))
        except (ArrowInvalid, OSError) as error:
            raise UserError(f"--storage-path {address}: {one_line(error)}") from error
        if not root.strip("/"):
            raise UserError(f"--storage-path {address} names no bucket: s3://BUCKET/FOLDER")
        if isinstance(filesystem, fs.S3FileSystem):
            filesystem = ImpatientS3.like(filesystem)
        return cls(filesystem, root, name, remote=True)

    @property
    def folder(self) -> str:
        return f"{self.root}/{self.name}"

    @property
    def _awaited(self) -> AbstractContextManager[None]:
        return awaited(f"the storage {self.folder}")

    @contextlib.contextmanager
    def _asked(self, failure: str) -> Iterator[None]:
        with self._awaited, as_user_error(failure):
            yield

    def check(self, option: str = "--storage-path") -> None:
        """Raises UserError, naming the option that led there, if nothing can be written there."""
        if not self.remote:
            make_folder(existing_part(Path(self.root)), option=option)
            return
        probe = f"{self.root}/.probe-{self.name}"
        with self._asked(f"cannot write to --storage-path {self.root}"):
            self.filesystem.open_output_stream(probe).close()
            self.filesystem.delete_file(probe)

    def is_at(self, folder: Path) -> bool:
        """Whether a local folder is the sweep's folder here, by whatever name."""
        here = isinstance(self.filesystem, fs.LocalFileSystem)
        return here and Path(self.folder).resolve() == folder.resolve()

    def has(self, name: str) -> bool:
        """Whether a file of that name is in the sweep's folder. Raises UserError like `read`."""
        return self._info(name).type == fs.FileType.File

    def is_ahead(self, file: Path) -> bool:
        """Whether a file that only grows is longer in the sweep's folder than the local one.

        Raises UserError like `read`.
        """
        return (self._info(file.name).size or 0) > (file.stat().st_size if file.exists() else 0)

    def _info(self, name: str) -> fs.FileInfo:
        with self._asked(f"cannot read {self.folder}"):
            return self.filesystem.get_file_info(f"{self.folder}/{name}")

    def checkpoints(self, trial_id: str) -> list[str]:
        """Checkpoint folders of a trial, oldest first. Raises UserError like `read`."""
        with self._asked(f"cannot read {self.folder}"):
            return list_checkpoints(self.filesystem, f"{self.folder}/{trial_id}")

    def trials(self) -> set[str]:
        """Ids of the trials that have a folder here. Raises UserError like `read`."""
        everything = fs.FileSelector(self.folder, allow_not_found=True, recursive=self.remote)
        with self._asked(f"cannot read {self.folder}"):
            names = _names(self.folder, self.filesystem.get_file_info(everything))
        return {name for name in names if re.fullmatch(r"\d{5,}", name)}

    def size(self, folder: str) -> int:
        """Bytes of all files in a folder."""
        selector = fs.FileSelector(folder, recursive=True)
        with self._awaited:
            return sum(file.size or 0 for file in self.filesystem.get_file_info(selector))

    def delete(self, folder: str) -> None:
        with contextlib.suppress(OSError), self._awaited:  # retried at the sweep's end
            self.filesystem.delete_dir(folder)

    @contextlib.contextmanager
    def local(self, folder: str) -> Iterator[Path]:
        """The folder as a local one; a bucket's is downloaded."""
        from ray.tune import Checkpoint

        with Checkpoint(folder, filesystem=self.filesystem).as_directory() as path:
            yield Path(path)

    def read(self, name: str) -> bytes | None:
        """The contents of a file in the sweep's folder; None if there is none.

        Raises UserError if the folder cannot be read.
        """
        with self._asked(f"cannot read {self.folder}"):
            try:
                with self.filesystem.open_input_stream(f"{self.folder}/{name}") as source:
                    return source.read()
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Writes a file in the sweep's folder atomically, since others may be reading it."""
        file = f"{self.folder}/{name}"
        with self._awaited:
            if isinstance(self.filesystem, fs.LocalFileSystem):
                return replace_file(Path(file), content)
            with self.filesystem.open_output_stream(file) as out:
                out.write(content)

    def upload(self, folder: Path, name: str) -> None:
        """Copies a local folder into the sweep's folder."""
        with self._awaited:
            fs.copy_files(
                str(folder),
                f"{self.folder}/{name}",
                source_filesystem=fs.LocalFileSystem(),
                destination_filesystem=self.filesystem,
            )

    def fetch(self, file: Path) -> None:
        """Copies a file of the sweep's folder to the local one, if it is there.

        Raises UserError like `read`.
        """
        if (content := self.read(file.name)) is not None:
            replace_file(file, content)

    def catch_up(self, file: Path) -> None:
        """Copies a file that only grows from the sweep's folder, if it has more lines there.

        Raises UserError if each of the two has lines that the other lacks.
        """
        there, here = _whole_lines(self.read(file.name)), b""
        if file.exists():
            here = _whole_lines(file.read_bytes())
        if len(there) > len(here) and there.startswith(here):
            replace_file(file, there)
        elif not here.startswith(there):
            raise UserError(
                f"sweep {self.name!r} was continued in {file.parent} and, independently, in "
                f"{self.folder}: move the first away to resume the second"
            )

    def join_lines(self, file: Path) -> None:
        """Adds to a local log the lines of its copy in the sweep's folder that it lacks.

        Raises UserError like `read`.
        """
        there = _whole_lines(self.read(file.name)).splitlines(keepends=True)
        here = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        same = takewhile(lambda pair: pair[0] == pair[1], zip(here, there, strict=False))
        both = len(list(same))
        if there[both:]:
            replace_file(file, b"".join([*here, *there[both:]]))


def list_checkpoints(filesystem: fs.FileSystem, folder: str) -> list[str]:
    """Checkpoint folders in a trial's folder, oldest first.

    They are found by their files: a non-recursive listing of Google's buckets has no folders
    (arrow #35993).
    """
    files = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True, recursive=True))
    names = _names(folder, files)
    return sorted(f"{folder}/{name}" for name in names if name.startswith("checkpoint_"))


def _names(folder: str, files: list[fs.FileInfo]) -> set[str]:
    """The names in a folder, given all files below it."""
    return {file.path[len(folder) :].strip("/").partition("/")[0] for file in files}


@contextlib.contextmanager
def as_user_error(what: str) -> Iterator[None]:
    """Turns an OSError within into a UserError: what could not be done, and why."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: {one_line(error)}") from error


def replace_file(file: Path, content: bytes) -> None:
    """Writes a local file, all or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as partial:
        partial.write_bytes(content)


def _whole_lines(content: bytes | None) -> bytes:
    return content[: content.rfind(b"\n") + 1] if content else b""


def one_line(error: Exception) -> str:
    """An error's message in one line."""
    return " ".join(str(error).split())
