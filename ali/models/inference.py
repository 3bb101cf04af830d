"""Running trained networks on images: evaluation mode, batches of bounded size, noise by seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ali.data import to_unit
from ali.models.networks import ALI, Normal

CHUNK = 500  # images at once


def mu(networks: ALI, x: np.ndarray) -> np.ndarray:
    """Mean of q(z | x) for x, uint8 (N, H, W, 3): fp32 (N, 256), with running statistics."""
    encoder = networks.require_encoder()
    with evaluating(networks):
        return torch.cat([encoder(h)[0].cpu() for h in chunks(networks, x)]).numpy()


@contextmanager
def evaluating(networks: ALI) -> Iterator[None]:
    """Within: running statistics, no dropout, no gradients. The mode is restored afterwards."""
    training = networks.training
    networks.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        networks.train(training)


def chunks(networks: ALI, x: np.ndarray) -> Iterator[Tensor]:
    """x, uint8 (N, H, W, 3), as fp32 (≤ CHUNK, 3, H, W) in [0, 1] on the networks' device."""
    for start in range(0, len(x), CHUNK):
        part = torch.from_numpy(np.array(x[start : start + CHUNK]))
        yield to_unit(part.to(device_of(networks)))


def normal(seed: int, networks: ALI) -> Normal:
    """Normal numbers drawn on the CPU from a generator of their own: the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=generator).to(device_of(networks))


def device_of(networks: ALI) -> torch.device:
    return next(networks.parameters()).device
