"""The data sets, their splits, labelled draws and batches (§4, §4.4); owns pixel scaling.

Splits. `train` is cut once: its last 10,000 images are the validation set when it has 40,000 or
more (SVHN's has 73,257), its last fifth otherwise; the rest is the pool that labelled draws come
from. The unlabelled training images are `extra` where there is one, as the authors chose, else that
same rest. `test` is read by `load_test` alone.

Every split is decoded or generated once, into a folder of .npy files under $ALI_CACHE (default
~/.cache/ali-sweeps), and mapped read-only from there, so that all trials on a node share one copy.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
import tempfile
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ali import house_numbers
from ali.config import Config
from ali.errors import UserError

VALID_AT_SCALE, AT_SCALE = 10_000, 40_000  # validation images; train images from which it is so
VALID_FRACTION = 1 / 5  # of a smaller train split
HOUSE_NUMBERS_SMALL = {"train": 20_000, "test": 10_000}  # images made unless more are asked for
BLOCK = 4096  # images decoded at once: 12 MiB


@dataclass(frozen=True)
class Images:
    """Images in memory order, and their labels if known.

    Attributes:
        x: uint8 (N, H, W, C), usually a read-only map of a cached file.
        y: int64 (N,), classes from 0; or None.
    """

    x: np.ndarray
    y: np.ndarray | None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice) -> Images:
        return Images(self.x[rows], None if self.y is None else self.y[rows])


@dataclass(frozen=True)
class Dataset:
    """What one experiment trains and selects on; never the test split.

    Attributes:
        name: as in Config.data.
        train: unlabelled training images.
        labelled: the pool that labelled draws come from.
        valid: held-out images, labelled.
        classes: number of classes.
        fingerprint: 16 hex digits over the contents of the three.
        notes: what the user should know about the data, a line each.
    """

    name: str
    train: Images
    labelled: Images
    valid: Images
    classes: int
    fingerprint: str
    notes: tuple[str, ...] = ()


def load(config: Config) -> Dataset:
    """The data set that a configuration names: training images, labelled pool, validation set.

    Raises UserError where files are missing or broken, or too few for what the configuration asks.
    """
    splits, notes = _SOURCES[config.data](config, ("train", "extra"))
    train, extra = splits["train"], splits.get("extra")
    total = len(train.images)
    held = VALID_AT_SCALE if total >= AT_SCALE else round(total * VALID_FRACTION)
    if held < 1:
        raise UserError(f"{config.data}: {total} images are too few for a validation set")
    labelled, valid = train.images[: total - held], train.images[total - held :]
    unlabelled = labelled if extra is None else extra.images
    most = len(unlabelled)
    size = config.train_size or most
    if size > most:
        raise UserError(f"--train-size {size}: {config.data} has {most} training images here")
    if size < config.batch_size:
        raise UserError(f"--batch-size {config.batch_size} is more than the {size} training images")
    _check_draw(labelled.y, config.labels, config.balanced, house_numbers.CLASSES)
    parts = (train.fingerprint, extra.fingerprint if extra else None, size, held)
    return Dataset(
        config.data,
        train=unlabelled[:size],
        labelled=labelled,
        valid=valid,
        classes=house_numbers.CLASSES,
        fingerprint=hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest(),
        notes=notes,
    )


def load_test(config: Config) -> Images:
    """The test split; only `sweeps/best.py` calls it. Raises UserError as `load` does."""
    splits, _ = _SOURCES[config.data](config, ("test",))
    return splits["test"].images


# Labelled draws and batches


def draw_labelled(
    y: np.ndarray, n: int, rng: np.random.Generator, balanced: bool = True, classes: int = 10
) -> np.ndarray:
    """Indices int64 (n,), distinct and in random order, of n labelled images (§4.4).

    Balanced: ⌊n / classes⌋ of each class, and one more of as many random classes as the remainder
    asks for; otherwise uniformly at random. Raises UserError where `y` has too few.
    """
    _check_draw(y, n, balanced, classes)
    if not balanced:
        return rng.permutation(len(y))[:n]
    counts = np.full(classes, n // classes)
    counts[rng.permutation(classes)[: n % classes]] += 1
    chosen = [rng.permutation(np.flatnonzero(y == c))[:count] for c, count in enumerate(counts)]
    return rng.permutation(np.concatenate(chosen))


def _check_draw(y: np.ndarray | None, n: int, balanced: bool, classes: int) -> None:
    """Raises UserError where `y` has too few for a draw of `n`."""
    assert y is not None
    if n > len(y):
        raise UserError(f"--labels {n}: the labelled pool has {len(y)} images")
    counts = np.bincount(y, minlength=classes)
    if balanced and counts.min() < -(-n // classes):
        raise UserError(
            f"--labels {n}: a balanced draw takes {-(-n // classes)} of each class, but the pool "
            f"has {counts.min()} of class {counts.argmin()}; ask for fewer, or use --no-balanced"
        )


def to_unit(x: Tensor) -> Tensor:
    """Pixels in [0, 1]: uint8 (B, H, W, C) → fp32 (B, C, H, W) in channels_last memory.

    Points of the plane, fp32, stay as they are.
    """
    x = x.permute(0, 3, 1, 2)
    return x if x.is_floating_point() else x.to(torch.float32).div_(255)


def batches(x: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """One epoch of `x`, uint8 (N, H, W, C) on any device, in an order drawn from `generator`.

    Yields fp32 (batch_size, C, H, W) in [0, 1]; the last short batch is dropped, so that every step
    sees the same number of images. Nothing here waits for the device.
    """
    order = torch.randperm(len(x), generator=generator, device=generator.device).to(x.device)
    for start in range(0, len(x) - batch_size + 1, batch_size):
        yield to_unit(x[order[start : start + batch_size]])


# The cache


@dataclass(frozen=True)
class _Split:
    images: Images
    fingerprint: str  # of the contents
    notes: tuple[str, ...]


Source = tuple[dict[str, _Split], tuple[str, ...]]  # splits by name, notes
Sink = Callable[[np.ndarray], None]  # takes the next images, uint8 (B, H, W, C)
Build = Callable[[Sink], tuple[np.ndarray, tuple[str, ...]]]  # hands it all; gives labels, notes


def _cached(name: str, build: Build) -> _Split:
    """The split cached as `name`, built on the first call.

    A split is a folder x.npy, y.npy, meta.json, complete from the moment it has its name: of two
    processes that build it at once, the second finds the name taken and uses the first's.
    """
    root = Path(os.environ.get("ALI_CACHE") or Path.home() / ".cache" / "ali-sweeps")
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
        images = Images(np.load(folder / "x.npy", mmap_mode="r"), np.load(folder / "y.npy"))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot use the cache {root}: {reason}; set ALI_CACHE to a folder"
        ) from error
    except (ValueError, EOFError) as error:
        raise UserError(f"the cached data in {folder} is damaged: delete that folder") from error
    return _Split(images, meta["fingerprint"], tuple(meta["notes"]))


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
    y = np.ascontiguousarray(y, np.int64)
    contents.update(y.data)
    np.save(folder / "y.npy", y)
    meta = {"fingerprint": contents.hexdigest(), "notes": notes}
    (folder / "meta.json").write_text(json.dumps(meta))


# house-numbers


def _house_numbers_sizes(config: Config) -> dict[str, int]:
    """Images per split: 20,000 train (16,000 to train on) and 10,000 test; SVHN's own sizes where
    --train-size asks for more than 16,000, and `extra` where it asks for more than 63,257."""
    size = config.train_size or 0
    small = HOUSE_NUMBERS_SMALL
    if size <= small["train"] * (1 - VALID_FRACTION):
        return small
    full = {split: house_numbers.SIZES[split] for split in small}
    if size <= full["train"] - VALID_AT_SCALE:
        return full
    if size > house_numbers.SIZES["extra"]:
        raise UserError(f"--train-size {size}: at most {house_numbers.SIZES['extra']} are made")
    return full | {"extra": size}


def _house_numbers(split: str, n: int) -> _Split:
    def build(sink: Sink) -> tuple[np.ndarray, tuple[str, ...]]:
        labels = []
        for x, y in house_numbers.generate(split, n):
            sink(x)
            labels.append(y)
        return np.concatenate(labels), ()

    key = f"house-numbers-v{house_numbers.VERSION}-seed{house_numbers.SEED}-{split}-{n}"
    return _cached(key, build)


def _house_numbers_source(config: Config, wanted: tuple[str, ...]) -> Source:
    if config.data_dir is not None:
        raise UserError("house-numbers reads no files: leave out --data-dir, or use --data svhn")
    sizes = _house_numbers_sizes(config)
    return {split: _house_numbers(split, sizes[split]) for split in wanted if split in sizes}, ()


# SVHN


def _svhn_source(config: Config, wanted: tuple[str, ...]) -> Source:
    folder = _svhn_folder(config, wanted)
    splits: dict[str, _Split] = {}
    notes: tuple[str, ...] = ()
    for split in wanted:
        if split == "extra" and not (folder / _file_name(split)).exists():
            notes += (f"svhn: no {_file_name(split)}, so the model trains on train, unlabelled",)
        else:
            splits[split] = _svhn_split(folder, split)
            notes += splits[split].notes
    return splits, notes


def _file_name(split: str) -> str:
    return f"{split}_32x32.mat"


def _official(split: str) -> tuple[str, str]:
    """URL and md5 of an official file."""
    from torchvision.datasets import SVHN  # here: its import costs seconds

    url, _, md5 = SVHN.split_list[split]
    return url, md5


def _svhn_folder(config: Config, splits: Iterable[str]) -> Path:
    """The folder with the .mat files: the user's, or ./data/svhn, to which missing ones are
    downloaded."""
    if config.data_dir is not None:
        if not config.data_dir.is_dir():
            raise UserError(f"--data-dir {config.data_dir} is not a folder")
        return config.data_dir
    folder = Path("data") / "svhn"
    for split in splits:
        if not (folder / _file_name(split)).exists():
            _download(split, folder)
    return folder


def _download(split: str, folder: Path) -> None:
    from torchvision.datasets.utils import download_url

    url, md5 = _official(split)
    name = _file_name(split)
    try:
        # torchvision sets no timeout: ask first whether the host answers.
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10).close()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as partial:
            download_url(url, partial, name, md5)
            os.replace(Path(partial) / name, folder / name)
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: the checksum
        raise UserError(
            f"cannot download {url} ({error}): give --data-dir a folder with train_32x32.mat, "
            "test_32x32.mat and extra_32x32.mat, run on a machine with network, or use "
            "--data house-numbers"
        ) from error


def _svhn_split(folder: Path, split: str) -> _Split:
    """A split decoded from an official .mat file, or from one of that layout."""
    path = folder / _file_name(split)
    try:
        with open(path, "rb") as file:
            stat = os.fstat(file.fileno())
    except OSError as error:
        names = ", ".join(_file_name(name) for name in ("train", "test", "extra"))
        raise UserError(
            f"cannot read {path} ({error.strerror}): SVHN's files are {names}"
        ) from error

    def build(sink: Sink) -> tuple[np.ndarray, tuple[str, ...]]:
        y = _read_mat(path, sink)
        with open(path, "rb") as file:
            md5 = hashlib.file_digest(file, "md5").hexdigest()
        note = f"svhn: {path.name} ({len(y):,} images) is not the official file (md5 {md5})"
        # Label 10 is digit 0.
        return np.where(y == 10, 0, y), () if md5 == _official(split)[1] else (note,)

    # Size and time stand for the contents here, so that a start need not hash 1.3 GB again.
    identity = f"v2 {path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    key = hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
    return _cached(f"svhn-{split}-{key}", build)


def _read_mat(path: Path, sink: Sink) -> np.ndarray:
    """Streams X of a MATLAB file into `sink`; returns y (N,), 1 to 10.

    Level-5 files with X stored as uint8, the official layout, are read with one block in memory.
    Any other layout goes through scipy, which holds the whole array once.
    """
    try:
        with open(path, "rb") as file:
            n, y = _stream_v5(file, sink, path)
    except _OtherLayoutError:
        n, y = _scipy_mat(path, sink)
    except (EOFError, ValueError, struct.error, zlib.error) as error:
        raise UserError(f"{path} is truncated or damaged ({error}): fetch it again") from error
    if n is None or y is None:
        raise UserError(f"{path} lacks {'X' if n is None else 'y'}: SVHN's files hold X and y")
    if len(y) != n:
        raise UserError(f"{path} has {n} images but {len(y)} labels")
    if not np.isin(y, np.arange(1, 11)).all():
        raise UserError(f"{path}: labels must be 1 to 10, where 10 is digit 0")
    return y.astype(np.int64)


def _check_shape(path: Path, shape: tuple[int, ...], dtype: Any) -> int:
    """Number of images in X."""
    if len(shape) != 4 or shape[:3] != (32, 32, 3) or shape[3] < 1 or dtype != np.uint8:
        raise UserError(f"{path}: X must be uint8 (32, 32, 3, N), not {dtype} {shape}")
    return shape[3]


def _scipy_mat(path: Path, sink: Sink) -> tuple[int | None, np.ndarray | None]:
    import scipy.io

    try:
        found = scipy.io.loadmat(path, variable_names=["X", "y"])
    except NotImplementedError as error:
        raise UserError(f"{path} is a MATLAB 7.3 file: save it with -v7") from error
    except Exception as error:  # scipy raises all sorts on a damaged file
        raise UserError(f"{path} is no readable MATLAB file ({error})") from error
    n, y = None, found.get("y")
    if "X" in found:
        x = found["X"]
        n = _check_shape(path, x.shape, x.dtype)
        for start in range(0, n, BLOCK):
            sink(x[..., start : start + BLOCK].transpose(3, 0, 1, 2))
    return n, None if y is None else y.ravel()


# A level-5 MATLAB file: 128 bytes of header, then elements (tag: type, bytes), each a matrix or a
# zlib stream that holds one. A matrix is flags, dimensions, name, data, each an element padded to
# 8 bytes. Arrays are column-major, so image n of (H, W, C, N) is contiguous, as (C, W, H).
_MATRIX, _COMPRESSED, _UINT8 = 14, 15, 2
_CLASS_UINT8, _COMPLEX = 9, 0x08
_NUMBERS = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8"}
_NUMBERS |= {12: "<i8", 13: "<u8"}


class _OtherLayoutError(Exception):
    """Not the official layout, but perhaps one that scipy reads; the sink was given nothing."""


class _Plain:
    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def read(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) < count:
            raise EOFError("it ends early")
        return data

    def finish(self) -> None:
        """Nothing to check."""


class _Inflated:
    """A zlib stream of `size` bytes, inflated as it is read."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.left, self.stream = file, size, zlib.decompressobj()

    def _some(self, count: int) -> bytes:
        packed = self.stream.unconsumed_tail
        if not packed:
            packed = self.file.read(min(self.left, 1 << 20))
            self.left -= len(packed)
        data = self.stream.decompress(packed, count)
        if not (packed or data or self.stream.eof):
            raise EOFError("it ends early")
        return data

    def read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            if self.stream.eof:
                raise EOFError("it ends early")
            data += self._some(count - len(data))
        return bytes(data)

    def finish(self) -> None:
        """Reads the rest: zlib compares its checksum at the very end."""
        while not self.stream.eof:
            self._some(1 << 16)


def _stream_v5(file: BinaryIO, sink: Sink, path: Path) -> tuple[int | None, np.ndarray | None]:
    head = file.read(128)
    if len(head) < 128 or head[124:] != b"\x00\x01IM":
        raise _OtherLayoutError
    n, y = None, None
    while head := file.read(8):
        kind, size = struct.unpack("<II", head)
        end = file.tell() + size
        if kind not in (_MATRIX, _COMPRESSED):
            raise EOFError(f"an element of type {kind}")
        source = _Inflated(file, size) if kind == _COMPRESSED else _Plain(file)
        if kind == _COMPRESSED:
            source.read(8)  # the tag of the matrix within
        (_, flags), (_, shape), (_, name) = (_element(source) for _ in range(3))
        if name == b"X":
            if flags[0] != _CLASS_UINT8 or flags[1] & _COMPLEX:
                raise _OtherLayoutError
            n = _check_shape(path, tuple(np.frombuffer(shape, "<i4").tolist()), np.dtype(np.uint8))
            stored, size, _ = _tag(source)
            if stored != _UINT8 or size != n * 32 * 32 * 3:
                raise EOFError("X is not as long as its shape says")
            for start in range(0, n, BLOCK):
                block = source.read(min(BLOCK, n - start) * 32 * 32 * 3)
                pixels = np.frombuffer(block, np.uint8).reshape(-1, 3, 32, 32)  # (B, C, W, H)
                sink(pixels.transpose(0, 3, 2, 1))
            source.finish()
        elif name == b"y":
            stored, data = _element(source)
            if stored not in _NUMBERS:
                raise EOFError(f"y is of type {stored}")
            y = np.frombuffer(data, _NUMBERS[stored])
            source.finish()
        file.seek(end)
    return n, y


def _tag(source: _Plain | _Inflated) -> tuple[int, int, bytes | None]:
    """Type, bytes and, in the small form that packs them into the tag, the data."""
    tag = source.read(8)
    kind, size = struct.unpack("<II", tag)
    if kind >> 16:
        return kind & 0xFFFF, kind >> 16, tag[4 : 4 + (kind >> 16)]
    return kind, size, None


def _element(source: _Plain | _Inflated) -> tuple[int, bytes]:
    """Type and data."""
    kind, size, data = _tag(source)
    return kind, source.read(size + -size % 8)[:size] if data is None else data


# A source gives the wanted splits that exist, and notes.
_SOURCES: dict[str, Callable[[Config, tuple[str, ...]], Source]] = {
    "house-numbers": _house_numbers_source,
    "svhn": _svhn_source,
}
