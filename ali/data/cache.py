"""Images in memory order, the splits of a data set, and the cache they are mapped from.

Every split is decoded or generated once, into a folder of .npy files under $ALI_CACHE (default
~/.cache/ali-sweeps), and mapped read-only from there, so that all trials on a node share one copy.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ali import environment
from ali.data.splits import Images
from ali.errors import UserError

AT_SCALE = 40_000  # train images from which a fixed number is held out for validation
VALID_FRACTION = 1 / 5  # of a smaller train split
TEST_FRACTION = 1 / 10  # of data without a test split
BLOCK = 4096  # small images decoded at once: 12 MiB of 32×32


@dataclass(frozen=True)
class Split:
    """One split, with what the user should know about it."""

    images: Images
    fingerprint: str  # of the contents
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """What a data set has of the splits that were asked for.

    Attributes:
        splits: by name; `valid` where the data set has its own, else it is cut from train.
        classes: number of classes; 0 without labels.
        notes: what the user should know, a line each.
        valid_at_scale: images to cut for validation from AT_SCALE and more.
    """

    splits: dict[str, Split]
    classes: int
    notes: tuple[str, ...] = ()
    valid_at_scale: int = 10_000


Sink = Callable[[np.ndarray], None]  # takes the next images, uint8 (B, H, W, C)
# Hands it all the images; gives the labels, if there are any, and notes.
Build = Callable[[Sink], tuple[np.ndarray | None, tuple[str, ...]]]


def cached(name: str, build: Build) -> Split:
    """The split cached as `name`, built on the first call.

    A split is a folder x.npy, y.npy (if labelled), meta.json, complete from the moment it has its
    name: of two processes that build it at once, the second finds the name taken and uses the
    first's.
    """
    root = environment.cache_dir()
    folder = root / name
    try:
        if not folder.exists():
            root.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(root, name)
            partial = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
            try:
                _write_split(partial, build)
                try:
                    partial.rename(folder)
                except OSError:
                    if not folder.exists():
                        raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        meta = json.loads((folder / "meta.json").read_text())
        y = np.load(folder / "y.npy") if (folder / "y.npy").exists() else None
        images = Images(np.load(folder / "x.npy", mmap_mode="r"), y)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot use the cache {root}: {reason}; set ALI_CACHE to a folder"
        ) from error
    except (ValueError, EOFError) as error:
        raise UserError(f"the cached data in {folder} is damaged: delete that folder") from error
    return Split(images, meta["fingerprint"], tuple(meta["notes"]))


def _remove_abandoned(root: Path, name: str) -> None:
    """Removes what builders of `name` left that were killed: nothing was written for an hour."""
    for partial in root.glob(f".{name}-*"):
        with contextlib.suppress(FileNotFoundError):  # its builder has just finished
            written = max(path.stat().st_mtime for path in (partial, *partial.glob("*")))
            if time.time() - written > 3600:
                shutil.rmtree(partial, ignore_errors=True)


def _write_split(folder: Path, build: Build) -> None:
    contents = hashlib.blake2b(digest_size=16)
    shape = (0, 0, 0, 0)

    def header(file: BinaryIO) -> int:
        fields = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, fields)
        return file.tell()

    with open(folder / "x.npy", "wb") as file:
        reserved = header(file)  # numpy pads it so that the length may grow in place

        def sink(block: np.ndarray) -> None:
            nonlocal shape
            block = np.ascontiguousarray(block)
            shape = (shape[0] + len(block), *block.shape[1:])
            # Plain writes, not a map: mapped pages would count as this process's memory.
            file.write(block.data)
            contents.update(block.data)

        y, notes = build(sink)
        file.seek(0)
        assert header(file) == reserved
    if y is not None:
        y = np.ascontiguousarray(y, np.int64)
        contents.update(y.data)
        np.save(folder / "y.npy", y)
    meta = {"fingerprint": contents.hexdigest(), "notes": notes}
    (folder / "meta.json").write_text(json.dumps(meta))
