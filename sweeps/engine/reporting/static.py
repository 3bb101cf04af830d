"""The figures of a sweep as PNG and SVG, by matplotlib: for MLflow, for print, without JavaScript.

They show what `interactive` shows, without hovering and zooming.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sweeps.engine.endings import EndState
from sweeps.engine.reporting import series
from sweeps.engine.reporting.findings import Findings
from sweeps.engine.reporting.records import Records
from sweeps.engine.reporting.series import STYLES

Draw = Callable[[Findings, Records], Figure | None]
WIDTH, HEIGHT = 9.0, 4.2  # inches
DPI = 80  # MLflow shows a description some 750 pixels wide
STYLE = {
    "font.size": 11,
    "font.family": "sans-serif",
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "ali-sweeps",  # equal figures, equal files
}


def history(found: Findings, records: Records) -> Figure | None:
    """The objective by trial, and the best so far."""
    drawn = [curve for curve in series.curves(found) if curve.values]
    if not drawn:
        return None
    figure, axes = _figure(f"{found.objective} by trial", "trial", found.objective)
    for end, group in series.groups(drawn).items():
        style = STYLES[end]
        numbers, values = [int(c.trial_id) for c in group], [c.values[-1] for c in group]
        label = f"{end} ({len(group)})"
        dots = {"marker": style.marker, "linestyle": "none", "clip_on": False}
        axes.plot(numbers, values, color=style.colour, label=label, **dots)
    if steps := series.best_so_far(found):
        numbers, values = map(list, zip(*steps, strict=True))
        numbers, values = [*numbers, int(drawn[-1].trial_id)], [*values, values[-1]]
        axes.step(numbers, values, where="post", color=series.BEST, label="best so far")
    _baselines(axes, found)
    return _finish(figure, axes, found)


def learning_curves(found: Findings, records: Records) -> Figure | None:
    """The objective of each trial by epoch; the last point says how it ended."""
    drawn = [curve for curve in series.curves(found) if curve.values]
    if not drawn:
        return None
    title = f"Learning curves of {len(drawn)} trials"
    figure, axes = _figure(title, "epoch", found.objective)
    best = found.complete[0].trial_id if found.complete else None
    for end, group in series.groups(drawn).items():
        style = STYLES[end]
        dash = {"dash": "--", "dot": ":"}.get(style.dash, "-")
        for i, curve in enumerate(group):
            wide = curve.trial_id == best
            axes.plot(
                curve.epochs, curve.values, dash, color=style.colour,
                linewidth=2.8 if wide else 1.2, alpha=1 if wide else 0.75,
            )  # fmt: skip
            axes.plot(
                curve.epochs[-1:], curve.values[-1:], "none", marker=style.marker,
                color=style.colour, markersize=8, label=f"{end} ({len(group)})" if i == 0 else None,
            )  # fmt: skip
    _baselines(axes, found)
    return _finish(figure, axes, found)


def parallel(found: Findings, records: Records) -> Figure | None:
    """Parallel coordinates: one line per trial, coloured by its objective."""
    data = series.parallel(found)
    if len(data.values) < 2 or not data.axes:
        return None
    from matplotlib.colors import LinearSegmentedColormap

    title = f"Hyperparameters and {found.objective}, one line per trial"
    figure, axes = _figure(title, "", "")
    low, high = min(data.values), max(data.values)
    shade = LinearSegmentedColormap.from_list("", [colour for _, colour in series.GOOD_TO_BAD])
    columns = [*(axis.positions for axis in data.axes)]
    columns.append(tuple((v - low) / ((high - low) or 1) for v in data.values))
    for i in sorted(range(len(data.values)), key=lambda i: -found.sign * data.values[i]):
        place = columns[-1][i]
        bad = place if found.sign > 0 else 1 - place
        line = [column[i] for column in columns]
        axes.plot(line, color=shade(bad), linewidth=2.5 if i == 0 else 1.3, alpha=0.85)
    axes.set_axis_off()
    axes.set_title(title, loc="left", pad=44)
    objective = series.Axis(
        found.objective, False, columns[-1], (0.0, 0.5, 1.0),
        tuple(f"{v:.3f}" for v in (low, (low + high) / 2, high)),
    )  # fmt: skip
    for x, axis in enumerate((*data.axes, objective)):
        axes.axvline(x, ymin=0.04, color="0.6", linewidth=1)
        label = axis.label.replace(" ", "\n") + ("\n(log)" if axis.log else "")
        axes.text(x, 1.06, label, ha="center", va="bottom", fontsize=9, linespacing=0.95)
        for at, label in zip(axis.ticks, axis.labels, strict=True):
            axes.text(
                x + 0.04, at, label, fontsize=9, va="center",
                bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8},
            )  # fmt: skip
    axes.set_xlim(-0.1, len(data.axes) + 0.6)
    if data.left_out:
        text = f"{data.left_out} more vary"
        if found.importance.shares:
            text += "; these have the largest share of importance"
        axes.text(0, -0.22, text, fontsize=9, color="0.35")
    return figure


def importance(found: Findings, records: Records) -> Figure | None:
    """Shares of importance with their intervals, beside what is chance."""
    known = found.importance
    if not known.shares:
        return None
    shares = known.shares[: series.AXES][::-1]
    title = f"What mattered: importance, from {known.trials} trials"
    figure, axes = _figure(title, "share of what is explained (%)", "")
    for i, share in enumerate(shares):
        colour = "#0072B2" if share.value > known.chance else "#B0B0B0"
        axes.barh(i, 100 * share.value, color=colour)
        axes.plot([100 * share.low, 100 * share.high], [i, i], color="0.25", linewidth=1.5)
    axes.set_yticks(range(len(shares)), [share.name for share in shares])
    chance = 100 * known.chance
    axes.axvline(chance, color="#D55E00", linestyle="--")
    axes.text(chance, len(shares) - 0.4, f" chance: {chance:.0f} %", color="#B04A00", va="bottom")
    axes.set_xlim(0, max(chance, 100 * max(share.high for share in shares)) * 1.15)
    axes.set_ylim(-0.6, len(shares) + 0.2)
    axes.grid(visible=False, axis="y")
    figure.text(0.99, 0.01, "thin lines: 90 % intervals", ha="right", fontsize=9, color="0.35")
    return figure


def slot_use(found: Findings, records: Records) -> Figure | None:
    """Which trial each slot ran, and when."""
    bars = series.slot_bars(found, records)
    if not bars:
        return None
    total, slots = max(bar.end for bar in bars), 1 + max(bar.slot for bar in bars)
    unit, size = series.time_unit(total)
    height = min(HEIGHT, 1.3 + 0.5 * slots)
    x = f"{unit} since the first epoch began"
    figure, axes = _figure("Use of the slots", x, "slot", height)
    labelled: set[str] = set()
    for bar in bars:
        label = None if bar.state in labelled else bar.state
        labelled.add(bar.state)
        start, length = bar.start / size, (bar.end - bar.start) / size
        axes.barh(
            bar.slot, length, left=start, height=0.7, color=STYLES[bar.state].colour,
            edgecolor="white", label=label,
        )  # fmt: skip
        if bar.end - bar.start > total / 14:
            middle = start + length / 2
            colour = "white" if bar.state == EndState.COMPLETED.value else "black"
            place = {"ha": "center", "va": "center", "fontsize": 8, "color": colour}
            axes.text(middle, bar.slot, bar.trial_id, **place)
    if slots <= 16:
        axes.set_yticks(range(slots), map(str, range(1, slots + 1)))
    axes.grid(visible=False, axis="y")
    axes.invert_yaxis()
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=10)
    return figure


FIGURES: dict[str, Draw] = {
    "history": history,
    "learning_curves": learning_curves,
    "parallel_coordinates": parallel,
    "importance": importance,
    "slot_use": slot_use,
}


def draw(found: Findings, records: Records) -> dict[str, Figure]:
    """The figures by name, without those that have nothing to draw yet."""
    with rc_context(STYLE):  # type: ignore[arg-type]
        drawn = {name: make(found, records) for name, make in FIGURES.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def svg(figure: Figure) -> str:
    """The drawing alone, to stand within a page."""
    out = io.StringIO()
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    return re.sub(r"^.*?(?=<svg)", "", out.getvalue(), flags=re.S)


def png(figure: Figure) -> bytes:
    """A picture on white."""
    out = io.BytesIO()
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure.savefig(out, format="png", dpi=DPI, bbox_inches="tight", facecolor="white")
    return out.getvalue()


def _figure(title: str, x: str, y: str, height: float = HEIGHT) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _baselines(axes: Any, found: Findings) -> None:
    for (label, value), dash in zip(
        series.baselines(found).items(), ("--", ":", "-."), strict=False
    ):
        axes.axhline(value, color="0.4", linestyle=dash, linewidth=1, label=f"{label}: {value:.3f}")


def _finish(figure: Figure, axes: Any, found: Findings) -> Figure:
    axes.set_ylim(*series.value_range(found))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=10)
    return figure
