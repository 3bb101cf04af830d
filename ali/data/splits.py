"""What a data set consists of: images, splits, one experiment's Dataset; how splits are cut."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

LARGE_TRAIN = 40_000  # with this many train images or more, validation is a fixed number
VALID_FRACTION = 1 / 5  # validation, of a smaller train split
TEST_FRACTION = 1 / 10  # test, of data that comes without a test split

T = TypeVar("T")


@dataclass(frozen=True)
class Images:
    """Images in memory order, and their labels if known.

    Attributes:
        x: uint8 (N, H, W, C), usually a read-only memory map of a cached file; or points in the
            plane, fp32 (N, 1, 1, 2).
        y: int64 (N,), classes from 0; or None.
    """

    x: np.ndarray
    y: np.ndarray | None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice) -> Images:
        return Images(self.x[rows], None if self.y is None else self.y[rows])


@dataclass(frozen=True)
class Split:
    """One split, with notes on what the user should know, one per line."""

    images: Images
    fingerprint: str  # of the contents
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Splits:
    """The splits that were asked for, as far as the data set has them.

    Attributes:
        by_name: train, valid, extra, test; `valid` only where the data set has its own, otherwise
            it is cut from train.
        classes: number of classes; 0 without labels.
        notes: what the user should know, one line each.
        large_valid: validation images to cut from a train split of LARGE_TRAIN or more.
        class_names: of class 0, 1, …; empty if they have no other names than their numbers.
    """

    by_name: dict[str, Split]
    classes: int
    notes: tuple[str, ...] = ()
    large_valid: int = 10_000
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """What one experiment trains on and selects with; never the test split.

    Attributes:
        name: as in Config.data.
        train: unlabelled training images.
        labelled: the pool that labelled draws come from; without labels if the data has none.
        valid: validation images, labelled if the pool is.
        classes: number of classes; 0 without labels.
        fingerprint: 16 hex digits, a hash of the contents of the three.
        notes: what the user should know about the data, one line each.
        class_names: as in Splits.
    """

    name: str
    train: Images
    labelled: Images
    valid: Images
    classes: int
    fingerprint: str
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()


def validation_size(train: int, large_valid: int) -> int:
    """How many of `train` images are held out for validation; 0 if there are too few."""
    return large_valid if train >= LARGE_TRAIN else round(train * VALID_FRACTION)


def hold_out_last(items: Sequence[T], fraction: float) -> tuple[Sequence[T], Sequence[T]]:
    """All but the last `fraction`, and the last `fraction`, which is at least one item."""
    kept = len(items) - max(1, round(len(items) * fraction))
    return items[:kept], items[kept:]


def mixed_order(paths: Iterable[str]) -> list[str]:
    """The paths ordered by their hashes: always the same order, and unrelated to the classes.

    Images that are stored class by class are put into this order before a split is cut: the last
    images of Tiny ImageNet would otherwise all belong to a few classes.
    """
    return sorted(paths, key=lambda path: hashlib.blake2b(os.fsencode(path)).digest())
