"""The embedded data set: procedural house numbers, a stand-in for SVHN (§4) that needs no download.

An image shows part of a number of one to four digits in one typeface. The digit in the middle is
the label; its neighbours, the edge of a plate, shading, shadow, blur and noise distract. The digits
are lighter or darker than their background by a limited amount. To draw the contact sheet:

    python -c "from ali.data import house_numbers as h; h.contact_sheet().save('OUT.png')"
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from ali.config import Config
from ali.data import files
from ali.data.cache import Sink, cached
from ali.data.splits import VALID_FRACTION, Split, Splits
from ali.errors import UserError

VERSION = 5  # raise with every change of the images: it is part of the cache key
SEED = 160600704  # fixed, as the images are the data set
CHUNK = 250  # images generated together, from one random stream
SIZES = {"train": 73_257, "test": 26_032, "extra": 531_131}  # largest splits: SVHN's own
SMALL_SIZES = {"train": 20_000, "test": 10_000}  # generated unless more are asked for
CLASSES = 10

# Typefaces: package, folder in it, files. Without thin weights, which vanish at 32 pixels, and
# without old-style figures (cmmi10), which are not all of one height.
TYPEFACES = (
    ("matplotlib", "mpl-data/fonts/ttf", "DejaVuSans DejaVuSans-Bold DejaVuSans-BoldOblique"),
    ("matplotlib", "mpl-data/fonts/ttf", "DejaVuSansMono-Bold DejaVuSerif DejaVuSerif-Bold"),
    ("matplotlib", "mpl-data/fonts/ttf", "DejaVuSerif-BoldItalic STIXGeneral STIXGeneralBol"),
    ("matplotlib", "mpl-data/fonts/ttf", "STIXGeneralBolIta cmb10 cmss10 cmtt10 cmr10"),
    ("font_roboto", "files", "Roboto-Regular Roboto-Medium Roboto-Bold Roboto-Black"),
    ("font_roboto", "files", "Roboto-BoldItalic"),
    ("font_source_sans_pro", "files", "SourceSansPro-Regular SourceSansPro-Semibold"),
    ("font_source_sans_pro", "files", "SourceSansPro-Black SourceSansPro-BoldIt"),
    ("font_source_serif_pro", "files", "SourceSerifPro-Regular SourceSerifPro-Bold"),
    ("font_source_serif_pro", "files", "SourceSerifPro-Black SourceSerifPro-SemiboldIt"),
    ("font_caladea", "files", "Caladea-Regular Caladea-Bold Caladea-BoldItalic"),
    ("font_manrope", "files", "Manrope-Medium Manrope-Bold Manrope-ExtraBold"),
    ("font_hanken_grotesk", "files", "HankenGrotesk-Medium HankenGrotesk-Bold"),
    ("font_fredoka_one", "files", "FredokaOne-Regular"),
)
CELL = 64  # pixels: side of a glyph's cell in the atlas
TALL = 44  # pixels: height of the digits in a cell
OVERSAMPLE = 2  # samples along each side of a pixel


def load_splits(config: Config, wanted: tuple[str, ...]) -> Splits:
    """Generated images and their digits, of `split_sizes`. Raises UserError for a --data-dir."""
    files.refuse_data_dir(config)
    sizes = split_sizes(config)
    splits = {name: _cached_split(name, sizes[name]) for name in wanted if name in sizes}
    return Splits(splits, CLASSES)


def split_sizes(config: Config) -> dict[str, int]:
    """Images per split: 20,000 train (16,000 of them to train on) and 10,000 test.

    SVHN's own sizes if --train-size is more than 16,000, with `extra` if it is more than 63,257.
    Raises UserError if it is more than SVHN's 531,131.
    """
    size = config.train_size or 0
    if size <= SMALL_SIZES["train"] * (1 - VALID_FRACTION):
        return SMALL_SIZES
    full = {split: SIZES[split] for split in SMALL_SIZES}
    if size <= full["train"] - Splits.large_valid:
        return full
    if size > SIZES["extra"]:
        raise UserError(f"--train-size {size}: at most {SIZES['extra']} are generated")
    return full | {"extra": size}


def _cached_split(split: str, n: int) -> Split:
    def build(sink: Sink) -> tuple[np.ndarray, tuple[str, ...]]:
        labels = []
        for x, y in generate(split, n):
            sink(x)
            labels.append(y)
        return np.concatenate(labels), ()

    return cached(f"house-numbers-v{VERSION}-seed{SEED}-{split}-{n}", build)


def generate(split: str, n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the first `n` images of a split in blocks: x uint8 (B, 32, 32, 3), y int64 (B,).

    Image i is the same for every `n` and number of threads. (Another kind of CPU or version of
    FreeType may round some pixels differently; the data set's fingerprint shows it.) Raises
    ValueError for more than SVHN's own number.
    """
    if not 0 < n <= SIZES[split]:
        raise ValueError(f"{split} has 1 to {SIZES[split]} images, not {n}")
    for index in range(-(-n // CHUNK)):
        # The operations are small: on busy cores two threads are slower than one.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            x, y = _chunk(split, index)
        finally:
            torch.set_num_threads(threads)
        yield x[: n - index * CHUNK], y[: n - index * CHUNK]


def _font_files() -> list[Path]:
    files = []
    for package, folder, names in TYPEFACES:
        spec = importlib.util.find_spec(package)  # locates the package without running it
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(
                f"the typefaces of {package} are missing: install the project"
            )
        root = Path(spec.origin).parent / folder
        for name in names.split():
            found = [root / f"{name}{suffix}" for suffix in (".ttf", ".otf")]
            files.append(next(path for path in found if path.exists()))
    return files


@functools.cache
def _atlas() -> tuple[torch.Tensor, torch.Tensor]:
    """Glyphs and the distance between digits, of all F typefaces.

    Returns:
        glyphs: fp32 (2, (10 F + 1) CELL, CELL), fill and outline of digit d of typeface f in cell
            10 f + d; the last cell is blank.
        advances: fp32 (F,), pixels.
    """
    files = _font_files()
    cells = np.zeros((2, 10 * len(files) + 1, CELL, CELL), np.float32)
    advances = []
    for f, file in enumerate(files):
        font = ImageFont.truetype(str(file), 200)
        boxes = [font.getbbox(str(d)) for d in range(10)]
        tall = max(box[3] - box[1] for box in boxes)
        font = ImageFont.truetype(str(file), 200 * TALL / tall)
        boxes = [font.getbbox(str(d)) for d in range(10)]
        middle = (min(box[1] for box in boxes) + max(box[3] for box in boxes)) / 2
        advances.append(max(box[2] - box[0] for box in boxes) + 3)
        for d, box in enumerate(boxes):
            at = (CELL / 2 - (box[0] + box[2]) / 2, CELL / 2 - middle)
            for channel, stroke in enumerate((0, 4)):
                cell = Image.new("L", (CELL, CELL))
                ImageDraw.Draw(cell).text(at, str(d), fill=255, font=font, stroke_width=stroke)
                cells[channel, 10 * f + d] = np.asarray(cell, np.float32) / 255
    return torch.from_numpy(cells.reshape(2, -1, CELL)), torch.tensor(advances, dtype=torch.float32)


def _chunk(split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Chunk `index` of a split: x uint8 (CHUNK, 32, 32, 3), y int64 (CHUNK,)."""
    stream = np.random.SeedSequence(SEED, spawn_key=(list(SIZES).index(split), index))
    rng = np.random.default_rng(stream)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        shape = (CHUNK, *(shape or (1, 1)))
        return torch.from_numpy(rng.uniform(low, high, shape).astype(np.float32))

    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal((CHUNK, *shape), np.float32))

    def chance(p: float) -> torch.Tensor:
        return (uniform(0, 1) < p).float()

    # The number: 1 to 4 digits, and which of them is in the middle.
    atlas, advances = _atlas()
    digits = torch.from_numpy(rng.integers(0, 10, (CHUNK, 5)))
    length = torch.from_numpy(rng.choice([1, 2, 3, 4], CHUNK, p=[0.2, 0.4, 0.3, 0.1]))
    before = (uniform(0, 1)[:, 0, 0] * length).long()  # digits left of the middle one
    after = length - 1 - before
    typeface = torch.from_numpy(rng.integers(0, len(advances), CHUNK))
    place = torch.arange(-2, 3)
    shown = (place >= -before[:, None]) & (place <= after[:, None])
    cell = torch.where(shown, typeface[:, None] * 10 + digits, 10 * len(advances))
    stride = (advances[typeface] * (1 + uniform(0, 0.25)[:, 0, 0]))[:, None, None]

    # Geometry: pixel → position in the line of digits, in atlas pixels (translation, perspective,
    # rotation, slant, size).
    height, aspect = uniform(17, 29), uniform(0.7, 1.2)
    angle, slant = 0.1 * normal(1, 1).clamp(-2.5, 2.5), 0.1 * normal(1, 1).clamp(-2, 2)
    side = 32 * OVERSAMPLE
    ticks = (torch.arange(side) + 0.5) / OVERSAMPLE - 16
    x = ticks[None, None, :] + uniform(-3, 3)
    y = ticks[None, :, None] + uniform(-3, 3)
    depth = 1 + uniform(-0.006, 0.006) * x + uniform(-0.006, 0.006) * y
    cos, sin = torch.cos(angle), torch.sin(angle)
    v = (cos * y - sin * x) / depth * (TALL / height)
    u = (cos * x + sin * y) / depth * (TALL / height) / aspect + slant * v

    def ink(rows: torch.Tensor | slice, du: torch.Tensor | float, dv: torch.Tensor | float):
        """Fill and outline, (B, 2, 32, 32) in [0, 1], of the digits moved by (du, dv)."""
        at_u, at_v, step = u[rows] - du, v[rows] - dv, stride[rows]
        k = torch.round(at_u / step).clamp(-2, 2)
        chosen = cell[rows].gather(1, (k.long() + 2).flatten(1)).view(k.shape)
        column = (at_u - k * step).clamp(-CELL / 2, CELL / 2) + CELL / 2
        row = at_v.clamp(-CELL / 2 + 1, CELL / 2 - 1) + CELL / 2 + chosen * CELL
        grid = torch.stack((column / CELL, row / atlas.shape[1]), -1) * 2 - 1
        glyphs = F.grid_sample(atlas.expand(len(grid), -1, -1, -1), grid, align_corners=False)
        return F.avg_pool2d(glyphs, OVERSAMPLE)

    def pool(mask: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(mask[:, None], OVERSAMPLE)

    fill, stroke = ink(slice(None), 0.0, 0.0).split(1, 1)
    shadow = torch.zeros_like(fill)
    rows = torch.nonzero(chance(0.25).flatten()).flatten()
    shadow[rows] = ink(rows, uniform(-5, 5)[rows], uniform(2, 5)[rows])[:, :1]

    # A plate around the number, with or without a rim.
    margin = uniform(4, 14)
    left = (before[:, None, None] + 0.5) * stride + margin
    right = (after[:, None, None] + 0.5) * stride + margin
    inside = torch.minimum(torch.minimum(u + left, right - u), TALL / 2 + margin - v.abs())
    has_plate = chance(0.4)[..., None]
    outside = has_plate * (1 - pool((inside / 2 + 0.5).clamp(0, 1)))
    rim = has_plate * chance(0.4)[..., None] * pool((1.5 - inside.abs() / 1.5).clamp(0, 1))

    # Colours: first the luminance, which sets the contrast, then a tint that does not change it.
    ground = uniform(0.12, 0.88)
    contrast = uniform(0.15, 0.6)
    up = (uniform(0, 1) < 0.5) & (ground + contrast < 0.97) | (ground - contrast < 0.03)
    letters = torch.where(up, ground + contrast, ground - contrast).clamp(0.02, 0.98)

    def colour(luminance: torch.Tensor, strength: float) -> torch.Tensor:
        """(CHUNK, 3, 1, 1) of that luminance, tinted."""
        tint = normal(3, 1, 1)
        weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        tint = tint - (tint * weights).sum(1, keepdim=True)
        return luminance[:, None] + strength * uniform(0, 1)[:, None] * tint

    def lerp(a: torch.Tensor, b: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return a + (b - a) * t

    ramp = torch.linspace(-1, 1, 32)
    across, down = ramp.view(1, 1, 1, 32), ramp.view(1, 1, 32, 1)

    def slope(amount: float) -> torch.Tensor:
        return (
            uniform(-amount, amount)[..., None] * across
            + uniform(-amount, amount)[..., None] * down
        )

    stains = F.interpolate(normal(1, 5, 5), (32, 32), mode="bilinear", align_corners=True)
    picture = colour(ground, 0.05) + slope(0.1) + uniform(0, 0.05)[..., None] * stains
    picture = lerp(picture, colour(uniform(0.1, 0.9), 0.12), outside)
    picture = lerp(picture, colour(letters, 0.08), rim)
    picture = picture * (1 - 0.5 * shadow)
    outlined = chance(0.12)[..., None]
    picture = lerp(picture, colour(2 * ground - letters, 0.08).clamp(0, 1), outlined * stroke)
    picture = lerp(picture, colour(letters, 0.05) + slope(0.06), fill)
    picture = picture * (1 + slope(0.15))

    # The camera: blur (5 taps along each axis, its width per image), noise, 8 bits.
    sigma = uniform(0.3, 1.0)[..., None]
    taps = [torch.exp(-((t / sigma) ** 2) / 2) for t in range(3)]
    total = taps[0] + 2 * taps[1] + 2 * taps[2]
    for axis in (2, 3):
        padded = F.pad(picture, (2, 2, 0, 0) if axis == 3 else (0, 0, 2, 2), mode="replicate")
        parts = [padded.narrow(axis, t, 32) for t in range(5)]
        picture = parts[2] * taps[0]
        picture = picture + (parts[1] + parts[3]) * taps[1] + (parts[0] + parts[4]) * taps[2]
        picture = picture / total
    picture = picture + uniform(0, 0.012)[..., None] * normal(3, 32, 32)
    pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return pixels.numpy(), digits[:, 2].numpy()


def contact_sheet(columns: int = 20, scale: int = 2) -> Image.Image:
    """The first `columns` training images of each class, one row each, enlarged `scale` times."""
    blocks = list(generate("train", 1000))
    x, y = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    rows = [np.concatenate(x[y == d][:columns], axis=1) for d in range(CLASSES)]
    sheet = Image.fromarray(np.concatenate(rows, axis=0))
    return sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)
