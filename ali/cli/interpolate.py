"""`python -m ali interpolate`: a grid of interpolations between pairs of validation images."""

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
from ali.errors import UserError


@dataclass(frozen=True)
class Interpolate(ImageOptions):
    """Draw a PNG grid of interpolations, one pair of validation images per row."""

    GROUPS: ClassVar[tuple[Group, ...]] = (
        Group("common", "--checkpoint runs/one --output between.png"),
    )

    rows: int = 8
    """Pairs of images."""
    steps: int = 10
    """Decoded points of a row, both ends included."""

    def run(self) -> None:
        check_between(1, 1000, rows=self.rows, steps=self.steps)
        if self.rows * (self.steps + 2) > MAX_TILES:
            raise UserError(f"--rows and --steps make more than {MAX_TILES} pictures: lower one")
        check_seed(self.seed)
        check_output(self.output, ".png")
        set_threads(self.threads)
        from ali.figures import grids

        networks, config = load_image_networks(self)
        x = validation_images(self, networks, config)[: 2 * self.rows]
        write_png(self.output, grids.interpolations(networks, x, self.rows, self.steps, self.seed))
