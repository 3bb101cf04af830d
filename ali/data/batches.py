"""Batches of images in [0, 1] (§4): an epoch of a data set, labelled batches, pixel scaling."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def to_unit(x: Tensor) -> Tensor:
    """Scales pixels to [0, 1]: uint8 (B, H, W, C) → fp32 (B, C, H, W), memory in channels_last.

    Points in the plane, fp32, keep their values.
    """
    x = x.permute(0, 3, 1, 2)
    return x if x.is_floating_point() else x.to(torch.float32).div_(255)


def batches(x: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """One epoch of `x`, (N, H, W, C) as in `Images` on any device, in an order from `generator`.

    Yields fp32 (batch_size, C, H, W) in [0, 1]. The last, shorter batch is dropped, so that all
    steps see the same number of images. Nothing here synchronises with the device.
    """
    order = torch.randperm(len(x), generator=generator, device=generator.device).to(x.device)
    for start in range(0, len(x) - batch_size + 1, batch_size):
        yield to_unit(x[order[start : start + batch_size]])


class LabelledBatches:
    """Batches of labelled images in a random order, which is drawn anew when all have been used.

    Args:
        x: uint8 (N, H, W, C), or points of the plane, on any device.
        y: int64 (N,), on the same device.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Makes the next batch begin a new order, so that a run resumes exactly between epochs."""
        self._rest = torch.empty(0, dtype=torch.int64)

    def draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """x fp32 (batch_size, C, H, W) in [0, 1], and y; all are drawn before one is again."""
        while len(self._rest) < batch_size:
            order = torch.randperm(len(self.y), generator=generator, device=generator.device)
            self._rest = torch.cat([self._rest.to(order.device), order])
        rows, self._rest = self._rest[:batch_size], self._rest[batch_size:]
        rows = rows.to(self.x.device)
        return to_unit(self.x[rows]), self.y[rows]
