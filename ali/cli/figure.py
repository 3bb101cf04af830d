"""`python -m ali figure`: Figures 2 to 7 in the paper's arrangement."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import tyro

from ali.arguments import Group
from ali.cli.checkpoints import ImageOptions, load_networks, validation_images
from ali.cli.common import check_output, check_seed, set_threads, write_png
from ali.config import Config
from ali.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from ali.models.base import Networks


@dataclass(frozen=True)
class Figure(ImageOptions):
    """Draw a figure of the paper, in the paper's arrangement: a PNG."""

    GROUPS: ClassVar[tuple[Group, ...]] = (
        Group("common", "3 --checkpoint runs/one --output figure3.png"),
    )

    number: tyro.conf.Positional[Literal[2, 3, 4, 5, 6, 7]] = tyro.MISSING
    """2 CIFAR-10, 3 SVHN, 4 CelebA, 5 Tiny ImageNet: samples and reconstructions; 6: interpolations
    between validation images; 7: the mixture."""
    gan: Path | None = None
    """Figure 7 only: checkpoint or run of a GAN (train --data mixture --model gan); without it, its
    panel is left out."""

    def run(self) -> None:
        check_output(self.output, ".png")
        check_seed(self.seed)
        set_threads(self.threads)
        from ali.figures import paper

        networks, config = load_networks(self.checkpoint, self.precision)
        paper.check(self.number, config.data)
        if self.gan is not None and self.number != 7:
            raise UserError(f"figure {self.number} shows no GAN: leave --gan out")
        if self.number == 7:
            write_png(self.output, self._mixture(networks, config))
            return
        data = self.data or config.data
        paper.check(self.number, data)
        x = validation_images(self, networks, config)
        if self.number == 6:
            picture = paper.interpolations(networks, x, data, self.seed)
        else:
            picture = paper.samples_and_reconstructions(self.number, networks, x, data, self.seed)
        write_png(self.output, picture)

    def _mixture(self, networks: Networks, config: Config) -> np.ndarray:
        """Fig. 7. Raises UserError if --checkpoint is not an ALI or --gan not a GAN like it."""
        from ali.figures.mixture import mixture_panels

        if self.data is not None or self.data_dir is not None:
            raise UserError("figure 7 draws its own points: leave --data and --data-dir out")
        if config.model != "ali":
            raise UserError("figure 7 takes an ALI as --checkpoint and the GAN as --gan")
        if self.gan is None:
            return mixture_panels(networks, config, seed=self.seed)
        gan, other = load_networks(self.gan, self.precision)
        if (other.model, other.data, other.modes) != ("gan", "mixture", config.modes):
            raise UserError(
                f"--gan {self.gan} was trained with --model {other.model} --data {other.data} "
                f"--modes {other.modes}: give one trained with --model gan --data mixture "
                f"--modes {config.modes}"
            )
        return mixture_panels(networks, config, gan, self.seed)
