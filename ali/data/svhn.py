"""SVHN (§4, Table 3): the official files, or others in their layout; reads MATLAB level-5 files."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ali.config import Config
from ali.data import files
from ali.data.cache import READ_BLOCK, Sink, cached
from ali.data.splits import Split, Splits
from ali.errors import UserError

FILES = {name: f"{name}_32x32.mat" for name in ("train", "test", "extra")}
MAX_LABELS = 1_400_000  # as many images as the 4 GiB of a level-5 file's variable hold


def load_splits(config: Config, wanted: tuple[str, ...]) -> Splits:
    """Images and digits of train, test and, if its file is there, extra.

    Without --data-dir the official files are downloaded. Other files in this layout work too; a
    note is printed. Raises UserError if a file is missing or damaged.
    """
    folder = files.data_folder(config)
    names = [name for name in wanted if name in FILES]
    if config.data_dir is None:
        for name in names:
            if not (folder / FILES[name]).exists():
                otherwise = "give --data-dir a folder with " + ", ".join(FILES.values())
                files.download(*_official(name), folder, otherwise)
    splits: dict[str, Split] = {}
    notes: tuple[str, ...] = ()
    for name in names:
        if name == "extra" and not (folder / FILES[name]).exists():
            notes += (f"svhn: no {FILES[name]}, so the unlabelled images are those of train",)
        else:
            splits[name] = _cached_split(folder, name)
            notes += splits[name].notes
    return Splits(splits, 10, notes)


def _official(split: str) -> tuple[str, str]:
    """URL and md5 of an official file."""
    from torchvision.datasets import SVHN  # a slow import

    url, _, md5 = SVHN.split_list[split]
    return url, md5


def _cached_split(folder: Path, split: str) -> Split:
    path = folder / FILES[split]

    def build(sink: Sink) -> tuple[np.ndarray, tuple[str, ...]]:
        y = read_mat(path, sink)
        md5 = files.md5_of(path)
        note = f"svhn: {path.name} ({len(y):,} images) is not the official file (md5 {md5})"
        # Label 10 is digit 0.
        return np.where(y == 10, 0, y), () if md5 == _official(split)[1] else (note,)

    names = ", ".join(FILES.values())
    return cached(f"svhn-{split}-{files.identity('v2', [path], f'SVHN has {names}')}", build)


def read_mat(path: Path, sink: Sink) -> np.ndarray:
    """Passes X of a MATLAB file to `sink` block by block; returns y, int64 (N,), 1 to 10.

    Level-5 files that store X as uint8, the official layout, are read with one block in memory. Any
    other layout is read by scipy, with the whole array in memory. Raises UserError if the file is
    damaged or does not hold images and labels.
    """
    try:
        with open(path, "rb") as file:
            n, y = _stream_level_5(file, sink, path)
    except _OtherLayoutError:
        n, y = _read_with_scipy(path, sink)
    except (EOFError, ValueError, struct.error, zlib.error) as error:
        raise UserError(f"{path} is truncated or damaged ({error}): download it again") from error
    if n is None or y is None:
        raise UserError(f"{path} lacks {'X' if n is None else 'y'}: SVHN's files hold X and y")
    if len(y) != n:
        raise UserError(f"{path} has {n} images but {len(y)} labels")
    if not np.isin(y, np.arange(1, 11)).all():
        raise UserError(f"{path}: labels must be 1 to 10, where 10 is digit 0")
    return y.astype(np.int64)


def _check_shape(path: Path, shape: tuple[int, ...], dtype: str) -> int:
    """Number of images in X. Raises UserError if X is not uint8 (32, 32, 3, N)."""
    if len(shape) != 4 or shape[:3] != (32, 32, 3) or shape[3] < 1 or dtype != "uint8":
        raise UserError(f"{path}: X must be uint8 (32, 32, 3, N), not {dtype} {shape}")
    return shape[3]


def _read_with_scipy(path: Path, sink: Sink) -> tuple[int | None, np.ndarray | None]:
    """As _stream_level_5."""
    import scipy.io

    try:
        for name, shape, dtype in files.matlab_arrays(path):  # before anything is decoded
            if name == "X":
                _check_shape(path, shape, dtype)
            elif name == "y" and math.prod(shape) > MAX_LABELS:
                raise ValueError(f"y is {shape}")
        found = scipy.io.loadmat(path, variable_names=["X", "y"])
    except UserError:
        raise
    except Exception as error:  # scipy raises many types on a damaged file
        raise UserError(f"{path} is not a readable MATLAB file ({error})") from error
    n, y = None, found.get("y")
    if "X" in found:
        x = found["X"]
        n = _check_shape(path, x.shape, str(x.dtype))
        for start in range(0, n, READ_BLOCK):
            sink(x[..., start : start + READ_BLOCK].transpose(3, 0, 1, 2))
    return n, None if y is None else y.ravel()


# A level-5 MATLAB file is a header of 128 bytes, then elements, each with a tag (type, number of
# bytes): a matrix, or a zlib stream that holds one. A matrix consists of the elements flags, shape,
# name and data, each padded to 8 bytes. Arrays are column-major, so image n of (H, W, C, N) is
# contiguous, as (C, W, H).
_MATRIX, _COMPRESSED, _UINT8 = 14, 15, 2
_CLASSES = {6: "float64", 7: "float32", 8: "int8", 9: "uint8", 10: "int16", 11: "uint16"}
_CLASSES |= {12: "int32", 13: "uint32", 14: "int64", 15: "uint64"}
_COMPLEX = 0x08
_NUMBERS = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8"}
_NUMBERS |= {12: "<i8", 13: "<u8"}


class _OtherLayoutError(Exception):
    """Not the official layout, but perhaps one that scipy reads; nothing was passed to the sink."""


class _Plain:
    """An uncompressed element."""

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
        """Reads the rest, so that zlib verifies its checksum."""
        while not self.stream.eof:
            self._some(1 << 16)


def _stream_level_5(file: BinaryIO, sink: Sink, path: Path) -> tuple[int | None, np.ndarray | None]:
    """Number of images in X and y (N,); None for one that is missing."""
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
        (_, flags), (_, shape), (_, name) = (_element(source, 1024) for _ in range(3))
        if name == b"X":
            if flags[1] & _COMPLEX:
                raise _OtherLayoutError
            dtype = _CLASSES.get(flags[0], "an array")
            n = _check_shape(path, tuple(np.frombuffer(shape, "<i4").tolist()), dtype)
            stored, size, _ = _tag(source)
            if stored != _UINT8 or size != n * 32 * 32 * 3:
                raise EOFError("X is not as long as its shape says")
            for start in range(0, n, READ_BLOCK):
                block = source.read(min(READ_BLOCK, n - start) * 32 * 32 * 3)
                pixels = np.frombuffer(block, np.uint8).reshape(-1, 3, 32, 32)  # (B, C, W, H)
                sink(pixels.transpose(0, 3, 2, 1))
            source.finish()
        elif name == b"y":
            stored, data = _element(source, 8 * MAX_LABELS)
            if stored not in _NUMBERS:
                raise EOFError(f"y is of type {stored}")
            y = np.frombuffer(data, _NUMBERS[stored])
            source.finish()
        file.seek(end)
    return n, y


def _tag(source: _Plain | _Inflated) -> tuple[int, int, bytes | None]:
    """Type, number of bytes, and the data if the tag itself holds it (at most 4 bytes)."""
    tag = source.read(8)
    kind, size = struct.unpack("<II", tag)
    if kind >> 16:
        return kind & 0xFFFF, kind >> 16, tag[4 : 4 + (kind >> 16)]
    return kind, size, None


def _element(source: _Plain | _Inflated, most: int) -> tuple[int, bytes]:
    """Type and data. Raises EOFError, before it reads them, if they have more than `most` bytes."""
    kind, size, data = _tag(source)
    if size > most:
        raise EOFError(f"an element of {size:,} bytes")
    return kind, source.read(size + -size % 8)[:size] if data is None else data
