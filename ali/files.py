"""Writing files and folders: a kill or a full disk leaves no half-written file behind."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ali.errors import UserError


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, which becomes `path` when the block ends without an error.

    Raises UserError if the file cannot be written; nothing is left behind then.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot write {path}: {reason}; choose another place") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def make_folder(path: Path) -> Path:
    """Creates an output folder and its parents, and checks that files can be written there.

    Raises UserError if they cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as probe:  # a full disk takes the name, not the bytes
            probe.write(b"x")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot write to {path}: {reason}; choose another --output-dir") from error
    return path
