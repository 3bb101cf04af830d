"""Running trained networks on images: evaluation mode, batches of bounded size, noise by seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ali.data import to_unit
from ali.models.base import Networks, Normal

CHUNK = 500  # images at once


def mu(networks: Networks, x: np.ndarray) -> np.ndarray:
    """Mean of q(z | x) for x, uint8 (N, H, W, 3): fp32 (N, 256), with running statistics."""
    encoder = networks.require_encoder()
    with evaluating(networks):
        return torch.cat([encoder(h)[0].cpu() for h in chunks(networks, x)]).numpy()


def encode(networks: Networks, x: np.ndarray, seed: int = 0) -> np.ndarray:
    """As `mu`; for the mixture's networks ẑ ~ q(z | x), since q has no closed form there."""
    encoder, draw = networks.require_encoder(), normal(seed, networks)
    if not encoder.noise:
        return mu(networks, x)
    with evaluating(networks):
        return torch.cat([encoder.sample(h, draw)[0].cpu() for h in chunks(networks, x)]).numpy()


@contextmanager
def evaluating(networks: Networks) -> Iterator[None]:
    """In the block: running statistics, no dropout, no gradients; the mode is restored after it."""
    training = networks.training
    networks.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        networks.train(training)


def chunks(networks: Networks, x: np.ndarray) -> Iterator[Tensor]:
    """x, uint8 (N, H, W, 3), as fp32 (≤ CHUNK, 3, H, W) in [0, 1] on the networks' device."""
    for start in range(0, len(x), CHUNK):
        part = torch.from_numpy(np.array(x[start : start + CHUNK]))
        yield to_unit(part.to(device_of(networks)))


def normal(seed: int, networks: Networks) -> Normal:
    """Normal numbers drawn on the CPU from a generator of their own: the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=generator).to(device_of(networks))


def device_of(networks: Networks) -> torch.device:
    return next(networks.parameters()).device


def reconstruct(networks: Networks, x: np.ndarray, seed: int = 0) -> np.ndarray:
    """G_x(ẑ), ẑ ~ q(z | x), of x, uint8 (N, H, W, 3): the same shape and type; points likewise."""
    encoder, draw = networks.require_encoder(), normal(seed, networks)
    with evaluating(networks):
        made = [networks.decoder(*encoder.sample(h, draw)).cpu() for h in chunks(networks, x)]
        return _from_unit(torch.cat(made), x.dtype)


def sample(networks: Networks, n: int, seed: int = 0) -> np.ndarray:
    """n samples G_x(z), z ~ p(z): uint8 (n, H, W, 3), or fp32 points of the mixture."""
    draw, parts = normal(seed, networks), [CHUNK] * (n // CHUNK) + [n % CHUNK]
    points, decoder = networks.image[1:] == (1, 1), networks.require_prior()
    with evaluating(networks):
        z = [decoder.sample_prior(k, draw) for k in parts if k]
        made = torch.cat([decoder(*each).cpu() for each in z])
        return _from_unit(made, np.dtype(np.float32 if points else np.uint8))


def classify(networks: Networks, x: np.ndarray, seed: int = 0) -> np.ndarray:
    """The class of each image of x, uint8 (N, H, W, 3), int64 (N,); the same on every call.

    Raises UserError for a model that is trained without labels, FloatingPointError where a score is
    not finite.
    """
    networks.require_classifier()
    draw = normal(seed, networks)
    with evaluating(networks):
        scores = torch.cat([networks.class_scores(h, draw).cpu() for h in chunks(networks, x)])
    if not scores.isfinite().all():
        raise FloatingPointError("class scores")
    return scores.argmax(dim=1).numpy()


def _from_unit(x: Tensor, dtype: np.dtype) -> np.ndarray:
    """(N, C, H, W) → (N, H, W, C), scaled from [0, 1] where the type is uint8."""
    x = x.float().permute(0, 2, 3, 1)
    return (x.mul(255).round().to(torch.uint8) if dtype == np.uint8 else x).contiguous().numpy()
