"""CIFAR-10 (§4, Table 2): the official batches, pickles that are read without running any code."""

from __future__ import annotations

import os
import pickle
import pickletools
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ali.config import Config
from ali.data import files
from ali.data.cache import READ_BLOCK, Sink, cached
from ali.data.splits import Split, Splits
from ali.errors import UserError

FOLDER = "cifar-10-batches-py"
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FILES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}


def load_splits(config: Config, wanted: tuple[str, ...]) -> Splits:
    """Images and labels of train and test; 5,000 of the 50,000 train images are for validation.

    Without --data-dir the official archive is downloaded. Other batches, or fewer, work too; a note
    is printed. Raises UserError if a file is missing or damaged.
    """
    if config.data_dir is None and not (Path("data") / config.data / FOLDER).is_dir():
        url, md5 = _official()
        otherwise = f"give --data-dir the folder {FOLDER}"
        files.download(url, md5["archive"], Path("data") / config.data, otherwise, unpack=True)
    folder = files.data_folder(config, FOLDER)
    splits = {name: _cached_split(folder, name) for name in wanted if name in FILES}
    notes = tuple(note for split in splits.values() for note in split.notes)
    return Splits(splits, 10, notes, large_valid=5_000, class_names=NAMES)


def _official() -> tuple[str, dict[str, str]]:
    """URL of the archive; md5 of `archive` and of each batch."""
    from torchvision.datasets import CIFAR10  # a slow import

    md5: dict[str, str] = dict((*CIFAR10.train_list, *CIFAR10.test_list))
    return CIFAR10.url, md5 | {"archive": CIFAR10.tgz_md5}


def _cached_split(folder: Path, split: str) -> Split:
    names = FILES[split]
    # Batches after the first may be missing: it is a smaller data set then.
    paths = [folder / name for name in names if name == names[0] or (folder / name).exists()]

    def build(sink: Sink) -> tuple[np.ndarray, tuple[str, ...]]:
        y = np.concatenate([read_batch(path, sink) for path in paths])
        _, official = _official()
        others = [path.name for path in paths if files.md5_of(path) != official[path.name]]
        missing = [name for name in names if folder / name not in paths]
        notes = [f"no {', '.join(missing)}"] if missing else []
        notes += [f"not the official {', '.join(others)}"] if others else []
        note = f"cifar10: {len(y):,} images for {split}: {'; '.join(notes)}"
        return y, (note,) if notes else ()

    expected = f"CIFAR-10 is the folder {FOLDER} with data_batch_1 to 5 and test_batch"
    return cached(f"cifar10-{split}-{files.identity('v1', paths, expected)}", build)


def read_batch(path: Path, sink: Sink) -> np.ndarray:
    """Passes a batch's images to `sink`, uint8 (B, 32, 32, 3); returns their labels, int64 (N,).

    Holds one batch in memory: 30 MB of an official one. Raises UserError if the file is damaged or
    not such a batch.
    """
    try:
        with open(path, "rb") as file:
            _check_memo(file)
            # Python 2 wrote the official files: their strings, the pixels too, are bytes.
            batch = _Unpickler(file, encoding="bytes").load()
        fields = {key.decode() if isinstance(key, bytes) else key: batch[key] for key in batch}
        if "fine_labels" in fields:
            raise UserError(f"{path} is of CIFAR-100: give --data-dir the folder {FOLDER}")
        x, y = fields["data"].array(), list(fields["labels"])
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # a damaged pickle raises many types
        raise UserError(
            f"{path} is not a readable CIFAR-10 batch ({error}): download it again"
        ) from error
    if x.ndim != 2 or x.shape[1] != 3 * 32 * 32 or len(x) < 1:
        raise UserError(f"{path}: data must be uint8 (N, 3072), not {x.shape}")
    if len(y) != len(x):
        raise UserError(f"{path} has {len(x)} images but {len(y)} labels")
    # Check before conversion: a list that holds another many times would become a huge array.
    if not all(isinstance(label, int) and 0 <= label < 10 for label in y):
        raise UserError(f"{path}: labels must be 0 to 9")
    pixels = x.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    for start in range(0, len(x), READ_BLOCK):
        sink(pixels[start : start + READ_BLOCK])
    return np.array(y, np.int64)


def _check_memo(file: BinaryIO) -> None:
    """Raises ValueError for a pickle whose memo is longer than itself: it would take gigabytes."""
    size = os.fstat(file.fileno()).st_size
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name.endswith("PUT") and int(argument or 0) > size:
            raise ValueError(f"object {argument} of its memo")
    file.seek(0)


class _Array:
    """Replaces the numpy array in a pickle, so that none of numpy's own code runs."""

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Type, bool, bytes]) -> None:
        _, self.shape, self.type, self.by_column, self.raw = state

    def array(self) -> np.ndarray:
        if self.type.name not in ("u1", b"u1"):
            raise ValueError(f"data is of type {self.type.name!r}, not uint8")
        flat = np.frombuffer(self.raw, np.uint8)
        return flat.reshape(self.shape[::-1]).T if self.by_column else flat.reshape(self.shape)


class _Type:
    """Replaces numpy.dtype."""

    def __init__(self, name: str | bytes, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Ignores byte order and the like: bytes have none."""


def _array(*_: Any) -> _Array:
    return _Array()


def _encode(text: str, encoding: str | bytes) -> bytes:
    """How Python 3 pickles bytes in protocols 0 to 2."""
    if encoding not in ("latin1", b"latin1"):
        raise ValueError(f"bytes in {encoding!r}")
    return text.encode("latin1")


# All that a batch may refer to, written by numpy 1 or 2, and what replaces it.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _array,
    ("numpy._core.multiarray", "_reconstruct"): _array,
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch needs")
        return _ALLOWED[module, name]
