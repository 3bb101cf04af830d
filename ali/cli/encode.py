"""`python -m ali encode`: encodings of images, and the features of the L2-SVM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import tyro

from ali.arguments import Group
from ali.cli.checkpoints import NetworkOptions, load_image_networks
from ali.cli.common import check_output, set_threads
from ali.files import atomic_write


@dataclass(frozen=True)
class Encode(NetworkOptions):
    """Encode RGB images into an .npz: mu (N, z), and file names where there are any.

    ALI's z has 64 dimensions on CIFAR-10 and 256 on other data; other models have their --z-size.
    A model trained with labels adds classes (N,).
    """

    GROUPS: ClassVar[tuple[Group, ...]] = (
        Group("common", "--checkpoint runs/one --input faces --output z.npz"),
    )

    input: Path = tyro.MISSING
    """Images of the size trained on, 32×32 or 64×64: .npz (uint8, NHWC or NCHW), SVHN's .mat (X),
    or a folder of image files."""
    features: bool = False
    """Also write features (N, D), those of the L2-SVM of §4.4; at width 1, D is 5376 for SVHN's
    networks, 5184 for CIFAR-10's, 48128 for CelebA's and 4608 for Tiny ImageNet's."""

    def run(self) -> None:
        check_output(self.output, ".npz")
        set_threads(self.threads)
        import numpy as np

        from ali.data.image_files import read_images
        from ali.evaluation import protocol
        from ali.models.inference import classify, mu

        networks, _ = load_image_networks(self)
        networks.require_encoder()
        x, names = read_images(self.input, networks.image[1])
        arrays = {"mu": mu(networks, x)}
        if self.features:
            arrays["features"] = protocol.features(networks, x)
        if networks.kind.classifies:
            arrays["classes"] = classify(networks, x)
        if names is not None:
            arrays["names"] = np.array(names)
        with atomic_write(self.output) as partial, open(partial, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
