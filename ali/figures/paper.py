"""Figures 2 to 6 in the paper's arrangement, each one picture, uint8 (H, W, 3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ali.errors import UserError
from ali.figures import grids
from ali.models.base import Networks

FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
FONT_SIZE, MARGIN = 13, 8  # pixels

NAMES = {
    "cifar10": "CIFAR-10",
    "svhn": "SVHN",
    "celeba": "CelebA",
    "tiny-imagenet": "Tiny ImageNet",
    "mixture": "the mixture",
    "folder": "a folder of images",
}
DATA = {2: "cifar10", 3: "svhn", 4: "celeba", 5: "tiny-imagenet", 7: "mixture"}
STANDS_FOR = {"house-numbers": "svhn"}  # shares its table and its subject
_NUMBERS = {data: number for number, data in DATA.items()}


def check(number: int, data: str) -> None:
    """Raises UserError if figure `number` is of other data; the message names the right one.

    Fig. 6 is of CelebA in the paper; here it can be of any images.
    """
    subject = STANDS_FOR.get(data, data)
    if number == 6 and data != "mixture":
        return
    if DATA.get(number) != subject:
        wanted = NAMES[DATA[number]] if number in DATA else "images"
        right = _NUMBERS.get(subject)
        instead = f"that is figure {right}" if right else "figure 6 shows any images"
        raise UserError(f"figure {number} shows {wanted}, not {data}: {instead}")


def samples_and_reconstructions(
    number: int, networks: Networks, x: np.ndarray, data: str, seed: int = 0
) -> np.ndarray:
    """Figures 2 to 5: (a) samples and (b) reconstructions of the first images of x, side by side.

    x is uint8 (N, H, W, 3), validation images of the data set named `data`. In (b) they are in the
    odd columns, each one's reconstruction right of it.
    """
    check(number, data)
    name = NAMES.get(data, data)
    both = [
        _captioned(grids.samples(networks, seed=seed), f"(a) {name} samples."),
        _captioned(
            grids.reconstructions(networks, x[: grids.SHOWN], seed), f"(b) {name} reconstructions."
        ),
    ]
    instead = f", in place of {NAMES[STANDS_FOR[data]]}" if data in STANDS_FOR else ""
    return _captioned(
        _beside(both),
        f"Figure {number}: Samples and reconstructions on {name}{instead}.",
        "(b): odd columns are validation images, even columns their reconstructions.",
    )


def interpolations(networks: Networks, x: np.ndarray, data: str, seed: int = 0) -> np.ndarray:
    """Fig. 6: lines between ẑ of pairs of x, uint8 (N, H, W, 3), the images themselves at the ends.

    Raises UserError for fewer than two images.
    """
    check(6, data)
    return _captioned(
        grids.interpolations(networks, x, seed=seed),
        f"Figure 6: Latent space interpolations on {NAMES.get(data, data)}.",
        "Left and right: validation images.",
        "Between: decoded from ẑ₁ to ẑ₂.",
    )


# Pictures with captions


def _captioned(picture: np.ndarray, *lines: str) -> np.ndarray:
    """The picture, centred lines of text below; wider than the picture where the text is."""
    font = ImageFont.truetype(str(FONT), FONT_SIZE)
    step = sum(font.getmetrics()) + 2
    height, width = picture.shape[:2]
    across = max(width, *(int(font.getlength(line)) + 2 * MARGIN for line in lines))
    page = Image.new("RGB", (across, height + 2 * MARGIN + step * len(lines)), "white")
    page.paste(Image.fromarray(picture), ((across - width) // 2, 0))
    pen = ImageDraw.Draw(page)
    for i, line in enumerate(lines):
        pen.text((across / 2, height + MARGIN + i * step), line, "black", font, anchor="ma")
    return np.asarray(page)


def _beside(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Left to right, tops aligned, on white."""
    height = max(len(picture) for picture in pictures)
    padded = [
        np.pad(
            picture,
            ((0, height - len(picture)), (MARGIN, MARGIN), (0, 0)),
            constant_values=255,
        )
        for picture in pictures
    ]
    return np.concatenate(padded, axis=1)
