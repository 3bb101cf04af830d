"""Options and steps of the commands that use trained networks: sample, reconstruct, figure, …"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ali.cli import command
from ali.config import Config, DataName, Precision
from ali.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from ali.models.base import Networks


@dataclass(frozen=True)
class NetworkOptions:
    """Which networks, and how they run."""

    checkpoint: Path
    """Folder of a checkpoint, of a run of `train`, of a sweep's trial (its newest checkpoint), or
    of a full training of sweeps/best.py."""
    output: Path
    """File to write."""
    precision: Precision | None = None
    """fp32, bf16 or auto; default: the run's own."""
    threads: int | None = None
    """CPU threads; default: as many as there are cores."""


@dataclass(frozen=True)
class ImageOptions(NetworkOptions):
    """Which validation images are shown to the encoder."""

    data: DataName | None = None
    """Data set whose validation images are shown; default: the one trained on."""
    data_dir: Path | None = None
    """Folder of its files; default: the one trained from."""
    seed: int = 0
    """Seed of ẑ."""


def load_networks(checkpoint: Path, precision: Precision | None) -> tuple[Networks, Config]:
    """The networks of a checkpoint, in evaluation mode, and their experiment."""
    from ali.training import state
    from ali.training.checkpoint import find_checkpoint
    from ali.training.step import device

    networks, manifest = state.load_networks(find_checkpoint(checkpoint), device(), precision)
    if precision == "bf16" and manifest.config.data == "mixture":
        raise UserError(
            "--precision bf16 has no effect on the mixture's points, which are computed in fp32: "
            "leave it out"
        )
    return networks, manifest.config


def load_image_networks(options: NetworkOptions) -> tuple[Networks, Config]:
    """As `load_networks`. Raises UserError for networks of the mixture."""
    networks, config = load_networks(options.checkpoint, options.precision)
    if config.data == "mixture":
        figure = ("figure", 7, "--checkpoint", options.checkpoint, "--output", "figure7.png")
        shown = f"; figure 7 shows its panels: {command('-m', 'ali', *figure)}"
        raise UserError(
            "these networks are of the mixture, whose points are no images"
            + shown * (config.model == "ali")
        )
    return networks, config


def validation_images(options: ImageOptions, networks: Networks, config: Config) -> np.ndarray:
    """Images uint8 (N, H, W, 3) of the data set that is asked for, to show to the encoder.

    Raises UserError for a GAN, and for images of another size than the networks'.
    """
    from ali import data

    networks.require_encoder()
    _, height, width = networks.image
    name = options.data or config.data
    if name != config.data or options.data_dir is not None:
        config = config.replace(
            data=name,
            data_dir=options.data_dir,
            image_size=height if name == "folder" else 32,  # only `folder` uses it
            attribute=None,
            train_size=None,
        )
    # what training requires of the data's size and labels does not matter here
    unlabelled = config.replace(batch_size=2, attribute=None)
    x = data.load(unlabelled, check_labels=False).valid.x
    if x.shape[1:3] != (height, width):
        raise UserError(
            f"{config.data} has images of {x.shape[1]}×{x.shape[2]}, but the checkpoint takes "
            f"{height}×{width}: choose another --data"
        )
    return x
