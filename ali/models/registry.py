"""The networks of a configuration: new ones, and empty ones for weights that were saved."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ali.config import Config
from ali.models import networks
from ali.models.base import Networks


def create(
    config: Config, x: np.ndarray, classes: int, generator: torch.Generator, dtype: torch.dtype
) -> Networks:
    """New networks on the CPU, weights drawn from `generator`.

    Args:
        x: training images, uint8 (N, H, W, C), or points of the plane.
        classes: that labels have; 0 without labels.
        dtype: of the activations; weights are always fp32.
    """
    return networks.build(config, networks.pixel_mean(x, config.seed), generator, dtype)


def empty(config: Config, saved: Mapping[str, Tensor], dtype: torch.dtype) -> Networks:
    """Networks on the CPU that `load_state_dict(saved)` fits."""
    return networks.build(config, dtype=dtype)
