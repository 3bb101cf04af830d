"""Pictures as they are logged: enlarged without blur, each column named, a title above."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ali.metrics import INTERPOLATIONS, RECONSTRUCTIONS

TILE = 64  # pixels a side that images are enlarged to, at least
LINE = 2  # white pixels between images (ali/figures/grids.py)
FONT_SIZE, MARGIN = 15, 5  # pixels; names of columns are smaller
SOURCE, RESULT = "#0072b2", "#d55e00"  # of columns: blue and orange, which all eyes tell apart
ORIGINAL = "original"
NAMES = {RECONSTRUCTIONS: "reconstr.", INTERPOLATIONS: "decoded"}  # of the other columns


def marked(key: str, grid: np.ndarray, tile: int) -> np.ndarray:
    """A grid of images `tile` pixels wide, enlarged; where some columns show images of the data and
    others what the networks made of them, each is marked as one or the other.

    Args:
        key: RECONSTRUCTIONS or INTERPOLATIONS; other grids get no marks.
        grid: uint8 (H, W, 3), as ali/figures/grids.py makes it.
    """
    scale = max(1, TILE // tile)
    picture = grid.repeat(scale, axis=0).repeat(scale, axis=1)
    if key not in NAMES:
        return picture
    columns = (grid.shape[1] - LINE) // (tile + LINE)
    sources = range(0, columns, 2) if key == RECONSTRUCTIONS else (0, columns - 1)
    names = [ORIGINAL if column in sources else NAMES[key] for column in range(columns)]
    step = scale * (tile + LINE)
    return np.concatenate([_heads(names, step, picture.shape[1]), picture])


def _heads(names: Sequence[str], step: int, width: int) -> np.ndarray:
    """A strip with the name of each column, underlined in the colour of what it shows."""
    font = ImageFont.load_default(step * FONT_SIZE / 90)
    height = round(1.6 * font.getbbox("Ag")[3])
    strip = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(strip)
    for column, name in enumerate(names):
        left, colour = column * step, SOURCE if name == ORIGINAL else RESULT
        pen.text((left + step / 2, height - 6), name, colour, font, anchor="ms")
        pen.line((left + 4, height - 2, left + step, height - 2), colour, width=3)
    return np.asarray(strip)


def titled(picture: np.ndarray, title: str) -> np.ndarray:
    """A picture, uint8 (H, W, 3), below a line of text; as wide as the wider of the two."""
    font = ImageFont.load_default(FONT_SIZE)
    height, width = picture.shape[:2]
    top = round(font.getbbox("Ag")[3]) + 2 * MARGIN
    across = max(width, round(font.getlength(title)) + 2 * MARGIN)
    page = Image.new("RGB", (across, top + height), "white")
    page.paste(Image.fromarray(picture), (0, top))
    ImageDraw.Draw(page).text((MARGIN, MARGIN), title, "black", font)
    return np.asarray(page)
