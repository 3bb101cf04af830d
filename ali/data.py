"""The data sets, their splits, labelled draws and batches (§4, §4.4); owns pixel scaling.

Splits. `train` is cut once: its last 10,000 images are the validation set when it has 40,000 or
more (SVHN's has 73,257), its last fifth otherwise; the rest is the pool that labelled draws come
from. The unlabelled training images are `extra` where there is one, as the authors chose, else that
same rest. `test` is read by `load_test` alone.

Every split is decoded or generated once, into a folder of .npy files under $ALI_CACHE (default
~/.cache/ali-sweeps), and mapped read-only from there, so that all trials on a node share one copy.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
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
    splits, notes = _SOURCES[config.data](config)
    train, extra = splits["train"], splits.get("extra")
    held = (
        VALID_AT_SCALE
        if len(train.images) >= AT_SCALE
        else round(len(train.images) * VALID_FRACTION)
    )
    labelled, valid = (
        train.images[: len(train.images) - held],
        train.images[len(train.images) - held :],
    )
    unlabelled = labelled if extra is None else extra.images
    size = config.train_size or len(unlabelled)
    if size > len(unlabelled):
        raise UserError(
            f"--train-size {size}: {config.data} has {len(unlabelled)} training images here"
        )
    if size < config.batch_size:
        raise UserError(f"--batch-size {config.batch_size} is more than the {size} training images")
    if held < 1:
        raise UserError(
            f"{config.data}: {len(train.images)} images are too few for a validation set"
        )
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
    if config.data == "house-numbers":
        return _house_numbers("test", _house_numbers_sizes(config)["test"]).images
    return _svhn_split(_svhn_folder(config, ("test",)) / "test_32x32.mat").images


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
    """Pixels in [0, 1]: uint8 (B, H, W, C) → fp32 (B, C, H, W) in channels_last memory."""
    return x.permute(0, 3, 1, 2).to(torch.float32).div_(255)


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
    md5: str | None  # of the file it was decoded from


Sink = Callable[[np.ndarray], None]  # takes the next images, uint8 (B, H, W, C)


def _cached(name: str, build: Callable[[Sink], tuple[np.ndarray, str | None]]) -> _Split:
    """The split cached as `name`; on the first call `build(sink)` hands its images to the sink and
    returns labels and md5.

    A split is a folder x.npy, y.npy, meta.json, complete from the moment it has its name: of two
    processes that build it at once, the second finds the name taken and uses the first's.
    """
    root = Path(os.environ.get("ALI_CACHE") or Path.home() / ".cache" / "ali-sweeps")
    folder = root / name
    try:
        if not folder.exists():
            root.mkdir(parents=True, exist_ok=True)
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
    return _Split(images, meta["fingerprint"], meta["md5"])


def _write_split(folder: Path, build: Callable[[Sink], tuple[np.ndarray, str | None]]) -> None:
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

        y, md5 = build(sink)
        file.seek(0)
        assert header(file) == reserved
    y = np.ascontiguousarray(y, np.int64)
    contents.update(y.data)
    np.save(folder / "y.npy", y)
    meta = {"fingerprint": contents.hexdigest(), "md5": md5}
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
    def build(sink: Sink) -> tuple[np.ndarray, None]:
        labels = []
        for x, y in house_numbers.generate(split, n):
            sink(x)
            labels.append(y)
        return np.concatenate(labels), None

    key = f"house-numbers-v{house_numbers.VERSION}-seed{house_numbers.SEED}-{split}-{n}"
    return _cached(key, build)


def _house_numbers_source(config: Config) -> tuple[dict[str, _Split], tuple[str, ...]]:
    if config.data_dir is not None:
        raise UserError("house-numbers reads no files: leave out --data-dir, or use --data svhn")
    sizes = _house_numbers_sizes(config)
    return {split: _house_numbers(split, n) for split, n in sizes.items() if split != "test"}, ()


# SVHN


def _svhn_source(config: Config) -> tuple[dict[str, _Split], tuple[str, ...]]:
    folder = _svhn_folder(config, ("train", "extra"))
    splits, notes = {}, []
    for split in ("train", "extra"):
        path = folder / f"{split}_32x32.mat"
        if split == "extra" and not path.exists():
            notes.append(
                "svhn: no extra_32x32.mat, so train is what the model trains on, unlabelled"
            )
            continue
        splits[split] = _svhn_split(path)
        if splits[split].md5 != _official(split)[1]:
            notes.append(
                f"svhn: {path.name} ({len(splits[split].images):,} images) is not the official "
                f"file (md5 {splits[split].md5})"
            )
    return splits, tuple(notes)


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
        if not (folder / f"{split}_32x32.mat").exists():
            _download(split, folder)
    return folder


def _download(split: str, folder: Path) -> None:
    from torchvision.datasets.utils import download_url

    url, md5 = _official(split)
    name = f"{split}_32x32.mat"
    try:
        # torchvision sets no timeout: ask first whether the host answers.
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10).close()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as partial:
            download_url(url, partial, name, md5)
            os.replace(Path(partial) / name, folder / name)
    except (OSError, RuntimeError) as error:  # RuntimeError: the checksum
        raise UserError(
            f"cannot download {url} ({error}): give --data-dir a folder with train_32x32.mat, "
            "test_32x32.mat and extra_32x32.mat, run on a machine with network, or use "
            "--data house-numbers"
        ) from error


def _svhn_split(path: Path) -> _Split:
    """A split decoded from an official .mat file, or from one of that layout."""
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; SVHN's files are named like this one"
        ) from error

    def build(sink: Sink) -> tuple[np.ndarray, str]:
        y = _read_mat(path, sink)
        with open(path, "rb") as file:
            md5 = hashlib.file_digest(file, "md5").hexdigest()
        return np.where(y == 10, 0, y), md5  # label 10 is digit 0

    identity = f"v1 {path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    key = hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
    return _cached(f"svhn-{path.stem}-{key}", build)


def _read_mat(path: Path, sink: Sink) -> np.ndarray:
    """Streams X of a MATLAB file into `sink`, image by image; returns y (N,), 1 to 10.

    Level-5 files with X stored as uint8, the official layout, are read with about one block in
    memory. Any other layout goes through scipy, which holds the whole array once.
    """
    try:
        with open(path, "rb") as file:
            try:
                n, y = _stream_v5(file, sink, path)
            except _OtherLayoutError:
                n, y = _scipy_mat(path, sink)
    except (EOFError, struct.error, zlib.error) as error:
        raise UserError(f"{path} is truncated or damaged ({error}): fetch it again") from error
    if y is None or n is None:
        raise UserError(f"{path} lacks {'X' if n is None else 'y'}: SVHN's files hold X and y")
    if len(y) != n:
        raise UserError(f"{path} has {n} images but {len(y)} labels")
    if not np.isin(y, np.arange(1, 11)).all():
        raise UserError(f"{path}: labels must be 1 to 10, where 10 is digit 0")
    return y.astype(np.int64)


def _check_shape(path: Path, shape: tuple[int, ...], dtype: Any) -> int:
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
    if "X" not in found or "y" not in found:
        return (1 if "X" in found else None), found.get("y")
    x = found["X"]
    n = _check_shape(path, x.shape, x.dtype)
    for start in range(0, n, BLOCK):
        sink(x[..., start : start + BLOCK].transpose(3, 0, 1, 2))
    return n, found["y"].ravel()


# A level-5 MATLAB file: 128 bytes of header, then elements (tag: type, bytes), each a matrix or a
# zlib stream that holds one. A matrix is flags, dimensions, name, data, each an element padded to
# 8 bytes. Arrays are column-major, so image n of (H, W, C, N) is contiguous, as (C, W, H).
_MATRIX, _COMPRESSED = 14, 15
_CLASS_UINT8, _COMPLEX = 9, 0x0800
_TYPES = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8"}


class _OtherLayoutError(Exception):
    """Not the official layout, but perhaps one that scipy reads; nothing was decoded yet."""


def _stream_v5(file: BinaryIO, sink: Sink, path: Path) -> tuple[int | None, np.ndarray | None]:
    head = file.read(128)
    if len(head) < 128 or head[124:128] != b"\x00\x01IM":
        raise _OtherLayoutError
    n, y = None, None
    while tag := file.read(8):
        kind, size = struct.unpack("<II", tag)
        end = file.tell() + size
        if kind not in (_MATRIX, _COMPRESSED):
            raise _OtherLayoutError if n is None else EOFError(f"element of type {kind}")
        read = _inflated(file, size) if kind == _COMPRESSED else _plain(file, size)
        if kind == _COMPRESSED:
            read(8)  # the tag of the matrix within
        flags, dims, name = (_element(read)[1] for _ in range(3))
        shape = tuple(np.frombuffer(dims, "<i4").tolist())
        matlab_class, is_complex = flags[0], struct.unpack("<I", flags[:4])[0] & _COMPLEX
        if name == b"X":
            if matlab_class != _CLASS_UINT8 or is_complex:
                raise _OtherLayoutError
            n = _check_shape(path, shape, np.dtype(np.uint8))
            stored, size = _tag(read)[:2]
            if stored != 2 or size != n * 3072:
                raise EOFError("X is not as long as its shape says")
            for start in range(0, n, BLOCK):
                count = min(BLOCK, n - start)
                block = np.frombuffer(read(count * 3072), np.uint8).reshape(count, 3, 32, 32)
                sink(block.transpose(0, 3, 2, 1))
        elif name == b"y":
            stored, data = _element(read)
            if stored not in _TYPES or is_complex:
                raise _OtherLayoutError if n is None else EOFError(f"y of type {stored}")
            y = np.frombuffer(data, _TYPES[stored])
        file.seek(end)
    return n, y


def _tag(read: Callable[[int], bytes]) -> tuple[int, int, bytes | None]:
    """Type, bytes and, for the small form that packs them into the tag, the data."""
    tag = read(8)
    kind, size = struct.unpack("<II", tag)
    if kind >> 16:
        return kind & 0xFFFF, kind >> 16, tag[4 : 4 + (kind >> 16)]
    return kind, size, None


def _element(read: Callable[[int], bytes]) -> tuple[int, bytes]:
    kind, size, data = _tag(read)
    if data is None:
        data = read(size + -size % 8)[:size]
    return kind, data


def _plain(file: BinaryIO, size: int) -> Callable[[int], bytes]:
    def read(count: int) -> bytes:
        data = file.read(count)
        if len(data) < count:
            raise EOFError("it ends early")
        return data

    return read


def _inflated(file: BinaryIO, size: int) -> Callable[[int], bytes]:
    """Reads on from a zlib stream of `size` bytes."""
    stream, left = zlib.decompressobj(), size

    def read(count: int) -> bytes:
        nonlocal left
        out = bytearray()
        while len(out) < count:
            packed = stream.unconsumed_tail
            if not packed:
                packed = file.read(min(left, 1 << 20))
                left -= len(packed)
            piece = stream.decompress(packed, count - len(out))
            if not packed and not piece:
                raise EOFError("it ends early")
            out += piece
        return bytes(out)

    return read


_SOURCES: dict[str, Callable[[Config], tuple[dict[str, _Split], tuple[str, ...]]]] = {
    "house-numbers": _house_numbers_source,
    "svhn": _svhn_source,
}
