"""Fig. 7: the mixture of Gaussians in the plane, its samples, reconstructions and encodings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from ali.config import Config
from ali.data import mixture
from ali.evaluation import quality
from ali.models.base import Networks
from ali.models.inference import chunks, evaluating, normal

PANEL, DPI = 2.6, 100  # inches a side, pixels an inch
CODES_REACH = 4.0  # of the axes of z; 0.01 % of the prior lies beyond
DATA_SEED = 7  # of the data points shown; no model was trained on them
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
GREY = (0.55, 0.55, 0.55)


@dataclass(frozen=True)
class _Panel:
    """A scatter plot: points (n, 2), the mode each belongs to (n,), −1 for none, and the axes."""

    title: str
    points: np.ndarray
    mode: np.ndarray
    reach: float  # both axes show −reach to reach


def mixture_panels(
    networks: Networks, config: Config, gan: Networks | None = None, seed: int = quality.SEED
) -> np.ndarray:
    """Fig. 7, or the panels of it that one model has; `config` is that of `networks`.

    First row: data, ALI reconstructions, ALI samples, and samples of `gan` if given. Then a row for
    each stochastic layer: encodings, prior. If `networks` is a GAN: data and samples, then prior.
    Data points, their encodings and reconstructions have the colour of their mode; a sample and its
    z that of the mode within 3σ, grey if there is none. `seed` is that of z and ẑ; with the default
    the samples are those that MODES_MISSED is counted on.
    """
    x, mode = mixture.sample_points(quality.POINTS, config.modes, DATA_SEED)
    reach = float(mixture.centres(config.modes).max()) + 1
    above: list[_Panel | None] = [_Panel("Data", x, mode, reach)]
    codes: list[list[_Panel | None]] = [[None] for _ in range(networks.levels)]
    name = "GAN" if networks.encoder is None else "ALI"
    with evaluating(networks):
        if networks.encoder is not None:
            images = torch.cat(list(chunks(networks, x[:, None, None])))
            z_hat = networks.encoder.sample(images, normal(seed, networks))
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
    networks: Networks, name: str, modes: int, reach: float, seed: int
) -> tuple[tuple[Tensor, ...], _Panel]:
    """z₁ … z_L from the prior, and the panel of their samples."""
    with evaluating(networks):
        z = networks.decoder.sample_prior(quality.POINTS, normal(seed, networks))
        x_tilde = _plane(networks.decoder(*z))
    mode, distance = mixture.nearest_mode(x_tilde, modes)
    near = distance <= mixture.NEAR
    covered = modes - mixture.modes_missed(x_tilde, modes)
    title = f"{name} samples\n{covered} of {modes} modes, {near.mean():.0%} within 3σ"
    return z, _Panel(title, x_tilde, np.where(near, mode, -1), reach)


def _titles(what: str, z: Sequence[Tensor]) -> list[str]:
    """One title per stochastic layer, numbered if there are several."""
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
