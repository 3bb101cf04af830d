"""Trained networks, ready to use: encode, reconstruct and sample images as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ali.config import Config
from ali.errors import UserError
from ali.models import inference
from ali.models.base import Networks
from ali.models.networks import Decoder, Encoder
from ali.training import step
from ali.training.checkpoint import find_checkpoint
from ali.training.state import load_networks


@dataclass(frozen=True)
class TrainedNetworks:
    """The networks of a checkpoint, in evaluation mode.

    Images are uint8 (N, H, W, 3) of the size trained on; points of the mixture fp32 (N, 1, 1, 2).

    Attributes:
        networks: the modules, to do more with.
        config: the experiment.
        epoch: the epoch after which they were saved.
    """

    networks: Networks
    config: Config
    epoch: int

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str | None = None) -> TrainedNetworks:
        """Loads what `find_checkpoint` finds in `path`; `device`: default a GPU where there is one.

        Raises UserError if there is no checkpoint, or it is damaged.
        """
        folder = find_checkpoint(path)
        networks, manifest = load_networks(folder, device or step.device())
        return cls(networks, manifest.config, manifest.epoch)

    def __repr__(self) -> str:
        return (
            f"<networks of {self.config.data} at width {self.config.width:g}, epoch {self.epoch}>"
        )

    @property
    def encoder(self) -> Encoder:
        """G_z. Raises UserError for a GAN, which has none."""
        return self.networks.require_encoder()

    @property
    def decoder(self) -> Decoder:
        """G_x."""
        return self.networks.decoder

    def encode(self, x: np.ndarray) -> np.ndarray:
        """The mean of q(z | x) of images, fp32 (N, z); of the mixture's points ẑ ~ q(z | x)."""
        return inference.encode(self.networks, self._checked(x))

    def reconstruct(self, x: np.ndarray, seed: int = 0) -> np.ndarray:
        """G_x(ẑ) of images, ẑ ~ q(z | x)."""
        return inference.reconstruct(self.networks, self._checked(x), seed)

    def sample(self, n: int = 64, seed: int = 0) -> np.ndarray:
        """n images G_x(z), z ~ p(z)."""
        return inference.sample(self.networks, n, seed)

    def classify(self, x: np.ndarray) -> np.ndarray:
        """The class of each image, int64 (N,). Raises UserError for a model without labels."""
        return inference.classify(self.networks, self._checked(x))

    def _checked(self, x: np.ndarray) -> np.ndarray:
        maps, height, width = self.networks.image
        kind = np.float32 if height == 1 else np.uint8
        if x.ndim != 4 or x.shape[1:] != (height, width, maps) or x.dtype != kind:
            raise UserError(
                f"images must be {np.dtype(kind).name} of shape (N, {height}, {width}, {maps}), "
                f"not {x.dtype} {x.shape}"
            )
        return x
