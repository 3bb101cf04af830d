"""`python -m ali reconstruct`: a grid of validation images and their reconstructions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ali.arguments import Group
from ali.cli.checkpoints import ImageOptions, load_image_networks, validation_images
from ali.cli.common import (
    MAX_TILES,
    check_between,
    check_output,
    check_seed,
    set_threads,
    write_png,
)


@dataclass(frozen=True)
class Reconstruct(ImageOptions):
    """Draw a PNG grid: validation images (odd columns), reconstructions (even ones)."""

    GROUPS: ClassVar[tuple[Group, ...]] = (
        Group("common", "--checkpoint runs/one --output pairs.png"),
    )

    count: int = 50
    """Images reconstructed."""

    def run(self) -> None:
        check_between(1, MAX_TILES // 2, count=self.count)
        check_seed(self.seed)
        check_output(self.output, ".png")
        set_threads(self.threads)
        from ali.figures import grids

        networks, config = load_image_networks(self)
        x = validation_images(self, networks, config)
        write_png(self.output, grids.reconstructions(networks, x[: self.count], self.seed))
