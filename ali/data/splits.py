"""What a data set consists of: images and labels, its splits, and what one experiment gets (§4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
    """

    name: str
    train: Images
    labelled: Images
    valid: Images
    classes: int
    fingerprint: str
    notes: tuple[str, ...] = ()
