"""Reads CIFAR-10's batches, which are pickles, without running what a pickle may ask for."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ali.data.cache import BLOCK, Sink
from ali.errors import UserError


def read(path: Path, sink: Sink) -> np.ndarray:
    """Hands a batch's images to `sink`, uint8 (B, 32, 32, 3); returns their labels, int64 (N,).

    Holds one batch in memory: 30 MB of an official one. Raises UserError for a file that is no
    such batch.
    """
    try:
        with open(path, "rb") as file:
            # Python 2 wrote the official files: its strings, the pixels too, are bytes.
            batch = _Unpickler(file, encoding="bytes").load()
        fields = {key.decode() if isinstance(key, bytes) else key: batch[key] for key in batch}
        x, y = fields["data"].array(), np.array(fields["labels"])
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # a damaged pickle raises all sorts
        raise UserError(
            f"{path} is no readable CIFAR-10 batch ({error}): fetch it again"
        ) from error
    if x.ndim != 2 or x.shape[1] != 3 * 32 * 32 or len(x) < 1:
        raise UserError(f"{path}: data must be uint8 (N, 3072), not {x.shape}")
    if y.shape != (len(x),):
        raise UserError(f"{path} has {len(x)} images but {y.size} labels")
    if not np.isin(y, np.arange(10)).all():
        raise UserError(f"{path}: labels must be 0 to 9")
    pixels = x.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    for start in range(0, len(x), BLOCK):
        sink(pixels[start : start + BLOCK])
    return y.astype(np.int64)


class _Array:
    """Stands in for the numpy array that a pickle describes, which numpy's own code never sees."""

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Type, bool, bytes]) -> None:
        _, self.shape, self.type, self.by_column, self.raw = state

    def array(self) -> np.ndarray:
        if self.type.name not in ("u1", b"u1"):
            raise ValueError(f"data is of type {self.type.name!r}, not uint8")
        flat = np.frombuffer(self.raw, np.uint8)
        return flat.reshape(self.shape[::-1]).T if self.by_column else flat.reshape(self.shape)


class _Type:
    """Stands in for numpy.dtype."""

    def __init__(self, name: str | bytes, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like, which bytes do not have."""


def _array(*_: Any) -> _Array:
    return _Array()


def _encode(text: str, encoding: str | bytes) -> bytes:
    """How Python 3 writes bytes in the protocols of Python 2."""
    if encoding not in ("latin1", b"latin1"):
        raise ValueError(f"bytes in {encoding!r}")
    return text.encode("latin1")


# All that a batch may name, numpy 1 and 2, and what it gets in its place.
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _array,
    ("numpy._core.multiarray", "_reconstruct"): _array,
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch needs")
        return _ADMITTED[module, name]
