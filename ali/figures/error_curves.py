"""Validation error by training time, a line for each model: beside Table 1."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from ali.evaluation.table1 import Curve

SIZE, DPI = (9.0, 5.5), 110  # inches, pixels an inch
APART = 0.035  # of the axis, between two names at the lines' ends


def error_curves(
    curves: Mapping[str, Sequence[Curve]], title: str, time: str = "seconds of training"
) -> np.ndarray:
    """A picture (H, W, 3) uint8 of each model's trainings: their mean, and from best to worst.

    `time` says what the curves' seconds are. Trainings of a model have the same epochs. Time is on
    a log scale, and starts at the first epoch that was evaluated; each line has its name at its
    end.
    """
    figure = Figure(SIZE, DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    ends = []
    styles = itertools.product(("-", "--"), colormaps["tab10"].colors)  # type: ignore[attr-defined]
    for (name, trainings), (dashes, colour) in zip(curves.items(), styles, strict=False):
        errors = np.array([one.errors for one in trainings])
        seconds = np.array([one.seconds for one in trainings]).mean(axis=0)
        known = np.isfinite(errors).all(axis=0)
        if not known.any():
            continue
        x, y = seconds[known], errors[:, known]
        style = {"color": colour, "linestyle": dashes, "marker": "." if known.sum() == 1 else ""}
        axes.plot(x, y.mean(axis=0), linewidth=2, **style)
        axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=colour, alpha=0.15, linewidth=0)
        ends.append((float(y[:, -1].mean()), name, colour))
    axes.set(xscale="log", xlabel=time, ylabel="validation error", title=title)
    for which in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        which(LogFormatter(minor_thresholds=(2, 0.4)))  # 60 and not 6 × 10¹
    axes.grid(alpha=0.3)
    low, high = axes.get_ylim()
    place = -np.inf
    for end, name, colour in sorted(ends, key=lambda one: one[0]):
        place = max(place + APART, (end - low) / (high - low))
        axes.annotate(
            f"{name} {end:.3f}", (1, place), xytext=(6, 0), xycoords="axes fraction",
            textcoords="offset points", color=colour, va="center", annotation_clip=False,
        )  # fmt: skip
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
