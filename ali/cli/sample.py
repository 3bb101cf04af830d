"""`python -m ali sample`: a grid of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ali.arguments import Group
from ali.cli.checkpoints import NetworkOptions, load_image_networks
from ali.cli.common import (
    MAX_TILES,
    check_between,
    check_output,
    check_seed,
    set_threads,
    write_png,
)


@dataclass(frozen=True)
class Sample(NetworkOptions):
    """Draw a PNG grid of samples x̃ = G_x(z), z from the prior."""

    GROUPS: ClassVar[tuple[Group, ...]] = (
        Group("common", "--checkpoint runs/one --output samples.png"),
    )

    count: int = 100
    """Samples."""
    seed: int = 0
    """Seed of z."""

    def run(self) -> None:
        check_between(1, MAX_TILES, count=self.count)
        check_seed(self.seed)
        check_output(self.output, ".png")
        set_threads(self.threads)
        from ali.figures import grids

        networks, _ = load_image_networks(self)
        write_png(self.output, grids.samples(networks, self.count, self.seed))
