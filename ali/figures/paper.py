"""Figures 2 to 7 in the paper's arrangement, each one picture, uint8 (H, W, 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ali.config import Config
from ali.data import mixture
from ali.errors import UserError
from ali.evaluation import protocol, quality
from ali.models.networks import ALI

SHOWN = 50  # images reconstructed: a grid as large as that of 100 samples
PANEL, DPI = 2.6, 100  # inches a side, pixels an inch
CODES_REACH = 4.0  # of the axes of z; 0.01 % of the prior lies beyond
DATA_SEED = 7  # of the points shown, which no model was trained on
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
GREY = (0.55, 0.55, 0.55)
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
    """Raises UserError where figure `number` does not show the data set, and names one that does.

    Fig. 6 is of CelebA in the paper; here any images will do.
    """
    subject = STANDS_FOR.get(data, data)
    if number == 6 and data != "mixture":
        return
    if DATA.get(number) != subject:
        wanted = NAMES[DATA[number]] if number in DATA else "images"
        right = _NUMBERS.get(subject)
        instead = f"that is figure {right}" if right else "figure 6 shows any images"
        raise UserError(f"figure {number} is of {wanted}, not of {data}: {instead}")


def samples_and_reconstructions(
    number: int, networks: ALI, x: np.ndarray, data: str, seed: int = 0
) -> np.ndarray:
    """Figures 2 to 5: (a) samples and (b) reconstructions of the first images of x, side by side.

    x is uint8 (N, H, W, 3), validation images of the data set named `data`. In (b) they are in the
    odd columns, each one's reconstruction right of it.
    """
    check(number, data)
    name = NAMES.get(data, data)
    both = [
        _captioned(protocol.samples(networks, seed=seed), f"(a) {name} samples."),
        _captioned(
            protocol.reconstructions(networks, x[:SHOWN], seed), f"(b) {name} reconstructions."
        ),
    ]
    instead = f", in place of {NAMES[STANDS_FOR[data]]}" if data in STANDS_FOR else ""
    return _captioned(
        _beside(both),
        f"Figure {number}: Samples and reconstructions on {name}{instead}.",
        "(b): odd columns are validation images, even columns their reconstructions.",
    )


def interpolations(networks: ALI, x: np.ndarray, data: str, seed: int = 0) -> np.ndarray:
    """Fig. 6: lines between ẑ of pairs of x, uint8 (N, H, W, 3), the images themselves at the ends.

    Raises UserError for fewer than two images.
    """
    check(6, data)
    return _captioned(
        protocol.interpolations(networks, x, seed=seed),
        f"Figure 6: Latent space interpolations on {NAMES.get(data, data)}.",
        "Left and right: validation images.",
        "Between: decoded from ẑ₁ to ẑ₂.",
    )


# Fig. 7


@dataclass(frozen=True)
class _Panel:
    """A scatter plot: points (n, 2), the mode each belongs to (n,), −1 for none, and the axes."""

    title: str
    points: np.ndarray
    mode: np.ndarray
    reach: float  # both axes show −reach to reach


def mixture_panels(
    networks: ALI, config: Config, gan: ALI | None = None, seed: int = quality.SEED
) -> np.ndarray:
    """Fig. 7, or as much of it as one model gives; config is of `networks`, seed of z and ẑ.

    Above: data, ALI reconstructions, ALI samples, and samples of `gan` where it is given. Below,
    for each stochastic layer: encodings, prior. Where `networks` is a GAN: data and its samples,
    and below the prior. The data, its encodings and reconstructions have the colour of their mode;
    a sample and its z that of the mode that it lies within 3σ of, grey where there is none. The
    default seed draws the samples that MODES_MISSED is counted on.
    """
    x, mode = mixture.sample_points(quality.POINTS, config.modes, DATA_SEED)
    reach = float(mixture.centres(config.modes).max()) + 1
    above: list[_Panel | None] = [_Panel("Data", x, mode, reach)]
    codes: list[list[_Panel | None]] = [[None] for _ in range(networks.levels)]
    name = "GAN" if networks.encoder is None else "ALI"
    with protocol.evaluating(networks):
        if networks.encoder is not None:
            images = torch.cat(list(protocol.chunks(networks, x[:, None, None])))
            z_hat = networks.encoder.sample(images, protocol.normal(seed, networks))
            x_hat = _plane(networks.decoder(*z_hat))
            above.append(_Panel("ALI reconstructions", x_hat, mode, reach))
            titles = _titles("ALI encodings ẑ", z_hat)
            for row, title, part in zip(codes, titles, z_hat, strict=True):
                row.append(_Panel(title, _plane(part), mode, CODES_REACH))
    z, drawn = _samples(networks, name, config.modes, reach, seed)
    above.append(drawn)
    for row, title, part in zip(codes, _titles("Prior z", z), z, strict=True):
        row.append(_Panel(title, _plane(part), drawn.mode, CODES_REACH))
    if gan is not None:
        above.append(_samples(gan, "GAN", config.modes, reach, seed)[1])
    return _plot([above, *codes], _colours(config.modes))


def _samples(
    networks: ALI, name: str, modes: int, reach: float, seed: int
) -> tuple[tuple[Tensor, ...], _Panel]:
    """z₁ … z_L from the prior, and the panel of their samples."""
    with protocol.evaluating(networks):
        z = networks.decoder.prior(quality.POINTS, protocol.normal(seed, networks))
        x_tilde = _plane(networks.decoder(*z))
    mode, distance = mixture.nearest_mode(x_tilde, modes)
    near = distance <= mixture.NEAR
    covered = modes - mixture.modes_missed(x_tilde, modes)
    title = f"{name} samples\n{covered} of {modes} modes, {near.mean():.0%} within 3σ"
    return z, _Panel(title, x_tilde, np.where(near, mode, -1), reach)


def _titles(what: str, z: Sequence[Tensor]) -> list[str]:
    """A title a stochastic layer, numbered where there are several."""
    if len(z) == 1:
        return [what]
    return [what + str(level).translate(_SUBSCRIPTS) for level in range(1, len(z) + 1)]


def _plane(points: Tensor) -> np.ndarray:
    """(n, 2) or (n, 2, 1, 1) → fp32 (n, 2)."""
    return points.flatten(1).float().cpu().numpy()


def _colours(modes: int) -> np.ndarray:
    """RGB (modes + 1, 3), grey last, where an index of −1 finds it; neighbours differ in hue."""
    i = np.arange(modes)
    hsv = np.stack([i * 0.618 % 1, np.full(modes, 0.85), np.where(i % 2, 0.65, 0.9)], axis=1)
    return np.concatenate([hsv_to_rgb(hsv), [GREY]])


def _plot(rows: list[list[_Panel | None]], colours: np.ndarray) -> np.ndarray:
    """The panels, each below the one of the same column; None: nothing there."""
    columns = max(map(len, rows))
    figure = Figure(figsize=(PANEL * columns, PANEL * len(rows)), dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            if panel is None:
                continue
            axes = figure.add_subplot(len(rows), columns, 1 + i * columns + j)
            across, up = panel.points.T
            axes.scatter(across, up, s=2, c=colours[panel.mode], linewidths=0)
            axes.set_title(panel.title, fontsize=9)
            axes.set(xlim=(-panel.reach, panel.reach), ylim=(-panel.reach, panel.reach))
            axes.set_aspect("equal")
            axes.tick_params(labelsize=7)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


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
