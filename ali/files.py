"""Writing files and folders: whole or not at all, and never where another user's link leads."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ali.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write to; what it holds becomes `path` when the block ends without an error.

    Raises OSError if the file cannot be written; nothing is left behind then.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    # Only a new file: in a folder that others can write to, an existing name may be their link.
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        yield Path(f"/proc/self/fd/{descriptor}")  # this file, even if another now has its name
        os.fsync(descriptor)  # network file systems report a full disk only here
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """As `replacing`, but raises UserError if the file cannot be written."""
    try:
        with replacing(path) as partial:
            yield partial
    except OSError as error:
        raise _cannot_write(path, error, "choose another place") from error


def open_regular(path: Path, mode: str, buffering: int = -1) -> IO[Any]:
    """Opens a file to append to or to change. Raises UserError if that fails, or if it is a link.

    In a folder that others may write, their link may lead to any file of this user.
    """

    def opener(name: str, flags: int) -> int:
        # O_NONBLOCK: opening a named pipe would wait for its reader.
        descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.ELOOP, "")
        return descriptor

    try:
        return open(path, mode, buffering, opener=opener)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # ENXIO: a named pipe without a reader
            raise UserError(f"{path} is a link or no file: remove it") from error
        raise _cannot_write(path, error, "choose another place") from error


def append_line(path: Path, line: str) -> None:
    """Adds a line to a file, all of it or nothing. Raises UserError if that fails."""
    content = f"{line}\n".encode()
    with open_regular(path, "ab", buffering=0) as file:
        size = file.tell()
        try:
            if file.write(content) < len(content):
                file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise _cannot_write(path, error, "free space, or choose another place") from error


def make_folder(path: Path, shared: bool = False, option: str = "--output-dir") -> Path:
    """Creates an output folder and its parents, and checks that files can be written there.

    Raises UserError if they cannot, or if another user has put a link in place of the folder, or
    in it, where a file of ours may get the same name. `shared`: others keep files of their own
    there. `option`: the one that names the folder.
    """
    refuse_address(path, option, "choose a local folder")
    try:
        refuse_foreign_links(path)
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as probe:  # a full disk accepts a name, but no bytes
            probe.write(b"x")
        refuse_foreign_links(*(() if shared else path.iterdir()))
    except OSError as error:
        raise _cannot_write(path, error, f"choose another {option}", "write to") from error
    return path


def existing_part(path: Path) -> Path:
    """The folder that has to be writable for `path` to be made: itself, or a parent."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def refuse_address(path: Path | str, option: str, otherwise: str) -> None:
    """Raises UserError if a path is an address such as s3://bucket/folder.

    As a path it would be a local folder of that name. `otherwise`: what to give instead.
    """
    if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):
        raise UserError(f"{option} {path} is an address and not a local path: {otherwise}")


def is_full(error: OSError) -> bool:
    """Whether the disk, a user's share of it, or a file's largest size is used up."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def refuse_foreign_links(*paths: Path) -> None:
    """Raises UserError if one is a symbolic link that another user made: it may lead anywhere."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode) and status.st_uid not in (0, os.geteuid()):
                raise UserError(
                    f"{path} is a link that another user made (uid {status.st_uid}): remove it, or "
                    "choose another --output-dir"
                )


def _cannot_write(path: Path, error: OSError, way_on: str, how: str = "write") -> UserError:
    reason = (error.strerror or str(error)).lower()
    return UserError(f"cannot {how} {path}: {reason}; {way_on}")
