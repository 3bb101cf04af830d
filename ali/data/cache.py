"""The cache of decoded splits, which all trials on a node share.

Each split is decoded or generated once, into a folder of .npy files under $ALI_CACHE (default
~/.cache/ali-sweeps), and memory-mapped read-only from there. Several users may share a cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ali import environment
from ali.data.splits import Images, Split
from ali.errors import UserError
from ali.files import refuse_address

READ_BLOCK = 4096  # 32×32 images that readers pass to a sink at once: 12 MiB

Sink = Callable[[np.ndarray], None]  # called with the next images, uint8 (B, H, W, C)
# Passes all images to the sink, block by block; returns labels (N,) or None, and notes.
Build = Callable[[Sink], tuple[np.ndarray | None, tuple[str, ...]]]


def cached(name: str, build: Build) -> Split:
    """The split cached as `name`, built on the first call.

    A split is a folder with x.npy, y.npy (if labelled) and meta.json. It is built under a temporary
    name and renamed when complete: of two processes that build it at once, the slower one finds the
    name taken and uses the other's. Raises UserError if the cache is damaged or not writable.
    """
    root = environment.cache_dir()
    refuse_address(root, "ALI_CACHE", "set it to a folder of this machine")
    folder = root / name
    try:
        if not folder.exists():
            root.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(root, name)
            partial = root / f".{name}-{secrets.token_hex(4)}"
            partial.mkdir()  # mode by the umask: other users may share the cache
            try:
                _write_split(partial, build)
                try:
                    partial.rename(folder)
                except OSError:
                    if not folder.exists():
                        raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return _open(folder)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot use the cache {root}: {reason}; set ALI_CACHE to a writable folder"
        ) from error
    except (ValueError, TypeError, KeyError, EOFError) as error:
        raise UserError(
            f"the cached data in {folder} is damaged: delete that folder, or, if it belongs to "
            "another user, set ALI_CACHE to a folder of your own"
        ) from error


def _open(folder: Path) -> Split:
    """Maps a split. Raises ValueError if it is not what its builder wrote, byte by byte: whoever
    may write to the cache may have changed it. The check takes one or two seconds a gigabyte."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    x = np.load(folder / "x.npy", mmap_mode="r")
    y = np.load(folder / "y.npy") if (folder / "y.npy").exists() else None
    contents = hashlib.blake2b(digest_size=16)
    with open(folder / "x.npy", "rb") as file:  # no map: its pages count as this process's memory
        size = os.fstat(file.fileno()).st_size - file.seek(x.offset)
        hashlib.file_digest(file, lambda: contents)
    if y is not None:
        contents.update(y.data)
    if size != x.nbytes or contents.hexdigest() != meta["fingerprint"]:
        raise ValueError("the contents differ from their fingerprint")
    return Split(Images(x, y), meta["fingerprint"], tuple(meta["notes"]))


def _remove_abandoned(root: Path, name: str) -> None:
    """Removes what killed builders of `name` left: folders not written to for an hour."""
    for partial in root.glob(f".{name}-*"):
        with contextlib.suppress(OSError):  # its builder has just finished, or is another user
            written = max(path.stat().st_mtime for path in (partial, *partial.glob("*")))
            if time.time() - written > 3600:
                shutil.rmtree(partial, ignore_errors=True)


def _write_split(folder: Path, build: Build) -> None:
    """Writes x.npy as a stream, since the number of images is known only at its end."""
    contents = hashlib.blake2b(digest_size=16)
    shape = (0, 0, 0, 0)

    def header(file: BinaryIO) -> int:
        fields = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, fields)
        return file.tell()

    with open(folder / "x.npy", "wb") as file:
        reserved = header(file)  # numpy pads the header: a larger N still fits

        def sink(block: np.ndarray) -> None:
            nonlocal shape
            block = np.ascontiguousarray(block)
            shape = (shape[0] + len(block), *block.shape[1:])
            # Plain writes: the pages of a memory map would count as this process's memory.
            file.write(block.data)
            contents.update(block.data)

        y, notes = build(sink)
        file.seek(0)
        if header(file) != reserved:
            raise RuntimeError(f"{shape[0]} images do not fit into the header")
    if y is not None:
        y = np.ascontiguousarray(y, np.int64)
        contents.update(y.data)
        np.save(folder / "y.npy", y)
    meta = {"fingerprint": contents.hexdigest(), "notes": notes}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
