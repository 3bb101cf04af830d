"""Grids of images: samples, reconstructions, interpolations, and the pictures of an epoch.

Each is uint8 (H', W', 3), determined by the networks and its arguments.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ali.config import Config
from ali.data import Dataset
from ali.errors import UserError
from ali.metrics import INTERPOLATIONS, RECONSTRUCTIONS, SAMPLES
from ali.models.base import Networks
from ali.models.inference import chunks, evaluating, normal

SHOWN = 50  # images reconstructed: a grid as large as that of 100 samples
PAIRS = 8  # rows of interpolations
AT_ONCE = 100  # images decoded together


def epoch_pictures(networks: Networks, dataset: Dataset, config: Config) -> dict[str, np.ndarray]:
    """The pictures that are logged for an epoch: SAMPLES, RECONSTRUCTIONS and INTERPOLATIONS.

    Reconstructions and interpolations are of validation images. A GAN has only samples, a model
    without a prior no samples or interpolations; for the mixture the samples are the panels of
    Fig. 7, and there are no others.
    """
    kind = networks.kind
    if config.data == "mixture":
        if config.model not in ("ali", "gan"):
            return {}
        from ali.figures.mixture import mixture_panels  # matplotlib, which takes a second

        return {SAMPLES: mixture_panels(networks, config)}
    pictures = {SAMPLES: samples(networks)} if kind.generates else {}
    valid = dataset.valid.x
    if kind.encodes:
        pictures[RECONSTRUCTIONS] = reconstructions(networks, valid[:SHOWN])
    if kind.encodes and kind.generates:
        pictures[INTERPOLATIONS] = interpolations(networks, valid[-2 * PAIRS :], PAIRS)
    return pictures


def samples(networks: Networks, n: int = 100, seed: int = 0) -> np.ndarray:
    """n samples x̃ = G_x(z), z ~ N(0, I): Figures 2(a) to 5(a)."""
    decoder = networks.require_prior()
    with evaluating(networks):
        z = decoder.sample_prior(n, normal(seed, networks))
        return _grid(_decoded(networks, z), columns=round(n**0.5))


def reconstructions(networks: Networks, x: np.ndarray, seed: int = 0) -> np.ndarray:
    """x, uint8 (N, H, W, 3), in the odd columns, G_x(ẑ), ẑ ~ q(z | x), right of each: Fig. 2(b)."""
    with evaluating(networks):
        source = torch.cat(list(chunks(networks, x)))
        made = _decoded(networks, _z_hat(networks, source, seed))
        pairs = torch.stack([source.cpu(), made], dim=1)
        return _grid(pairs.flatten(0, 1), columns=2 * max(1, round((2 * len(x)) ** 0.5 / 2)))


def interpolations(
    networks: Networks, x: np.ndarray, rows: int = 8, steps: int = 10, seed: int = 0
) -> np.ndarray:
    """Decoded lines between ẑ₁ and ẑ₂ of pairs of images (§4.2), one pair per row.

    A row shows image i of x, uint8 (N ≥ 2, H, W, 3), `steps` equally spaced points from ẑ₁ to ẑ₂,
    both included, and image i + rows. Raises UserError for fewer than two images, and for a model
    without codes to interpolate.
    """
    networks.require_encoder()
    networks.require_prior()
    rows = min(rows, len(x) // 2)
    if rows < 1:
        raise UserError(f"an interpolation needs two images, not {len(x)}")
    with evaluating(networks):
        ends = torch.cat(list(chunks(networks, x[: 2 * rows])))
        t = torch.linspace(0, 1, steps, device=ends.device)[:, None]

        def between(z_hat: Tensor) -> Tensor:
            first, last = z_hat[:, None].chunk(2)  # (rows, 1, z)
            return ((1 - t) * first + t * last).flatten(0, 1)

        line = _decoded(networks, tuple(map(between, _z_hat(networks, ends, seed))))
        line, ends = line.view(rows, steps, *ends.shape[1:]), ends.cpu()
        shown = torch.cat([ends[:rows, None], line, ends[rows:, None]], dim=1)
        return _grid(shown.flatten(0, 1), columns=steps + 2)


def _decoded(networks: Networks, z: tuple[Tensor, ...]) -> Tensor:
    """G_x(z) on the CPU, so many at once that large grids fit in memory."""
    parts = zip(*(level.split(AT_ONCE) for level in z), strict=True)
    return torch.cat([networks.decoder(*part).cpu() for part in parts])


def _z_hat(networks: Networks, x: Tensor, seed: int) -> tuple[Tensor, ...]:
    return networks.require_encoder().sample(x, normal(seed, networks))


def _grid(images: Tensor, columns: int) -> np.ndarray:
    """(N, 3, H, W) in [0, 1] → uint8 (H', W', 3), images row by row, white lines between them.

    As torchvision's make_grid, whose import would cost every trial's process seconds.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    fill = (0, 0) * 3 + (0, rows * columns - len(images))
    tiles = F.pad(F.pad(images.cpu(), (2, 0, 2, 0), value=1.0), fill, value=1.0)
    tiles = tiles.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4)
    grid = F.pad(tiles.flatten(3, 4).flatten(1, 2), (0, 2, 0, 2), value=1.0)
    return grid.mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
