"""The picture of a sweep's results: samples of its best trial, and all learning curves.

    python benchmarks/sweep_picture.py --name laptop --output docs/sweep.png

Left, the samples that the best trial logged after its last epoch, pixels enlarged. Right, val_error
by epoch of every trial; its end says how the trial ended. The dashed lines are the same SVMs
without training. Reads the sweep's study and MLflow; only for sweeps that minimize val_error.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ali import environment
from ali.cli import main, parse_args
from ali.errors import UserError
from ali.metrics import RAW_PIXEL_ERROR, SAMPLES, UNTRAINED_ERROR
from sweeps import Location, TrialResult, results
from sweeps.engine.endings import EndState
from sweeps.engine.tracking import (
    TrackingContext,
    connect,
    experiment_of,
    find_trial,
    require_sweep,
)

ENLARGED = 2  # screen pixels per image pixel
TITLE = 50  # screen pixels above the images
STYLE = {  # of a curve, by how its trial ended: colour, marker of its last point
    EndState.COMPLETED: ("tab:blue", "o"),
    EndState.STOPPED_EARLY: ("tab:orange", "s"),
    EndState.DIVERGED: ("tab:red", "X"),
    EndState.COLLAPSED: ("tab:purple", "X"),
}
BASELINES = {RAW_PIXEL_ERROR: "raw pixels", UNTRAINED_ERROR: "untrained encoder"}


@dataclass(frozen=True)
class Picture(Location):
    """Draw the results of a sweep."""

    output: Path
    """PNG file to write."""


def draw(options: Picture) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"font.size": 17, "axes.titlesize": 19})
    environment.set_defaults(MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false")

    trials = results(options)
    if not trials or not trials[0].complete:
        raise UserError(f"no trial of sweep {options.name!r} has completed its full budget yet")
    client = connect(options.uri, existing=True)
    experiment = experiment_of(client, options.name)
    parent = require_sweep(client, experiment, options.name)
    to = TrackingContext(options.uri, experiment, options.name, parent.info.run_id, "")
    best = trials[0]
    grid = last_samples(client, find_trial(client, to, best.trial_id))
    grid = grid.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)
    side, width, height = grid.shape[0], 2.2 * grid.shape[1], grid.shape[0] + TITLE
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    left = figure.add_axes((0, 0, grid.shape[1] / width, side / height))
    left.imshow(grid, interpolation="none")
    left.set_axis_off()
    left.set_title(f"best trial ({best.trial_id}): samples after epoch {max(best.values)}")
    right = figure.add_axes((0.57, 0.28, 0.41, side / height - 0.28))
    draw_curves(right, trials, parent.data.metrics)
    figure.savefig(options.output)


def last_samples(client: Any, run: Any) -> np.ndarray:
    """The picture SAMPLES of a run's last epoch, uint8 (H, W, 3)."""
    by_step = {}
    for file in client.list_artifacts(run.info.run_id, "images"):
        # MLflow separates the parts of a name by +, its older versions by %
        found = re.search(rf"/{SAMPLES}[+%]step[+%](\d+)[+%].*\.png$", file.path)
        if found:
            by_step[int(found[1])] = file.path
    with tempfile.TemporaryDirectory() as folder:
        path = client.download_artifacts(run.info.run_id, by_step[max(by_step)], folder)
        return np.array(Image.open(path).convert("RGB"))


def draw_curves(axes: Any, trials: list[TrialResult], baselines: dict[str, float]) -> None:
    """Values of the objective by epoch, one line a trial."""
    for state, (colour, marker) in STYLE.items():
        group = [trial for trial in trials if trial.ending and trial.ending.state == state]
        for i, trial in enumerate(group):
            epochs, values = list(trial.values), list(trial.values.values())
            label = f"{state.value}: {len(group)}" if i == 0 else None
            axes.plot(epochs, values, color=colour, marker=".", linewidth=2)
            axes.plot(
                epochs[-1:], values[-1:], color=colour, marker=marker, markersize=10, label=label
            )
    for (name, label), dash in zip(BASELINES.items(), ("--", ":"), strict=True):
        if name in baselines:
            value = baselines[name]
            axes.axhline(value, color="0.35", linestyle=dash, label=f"{label}: {value:.3f}")
    best = trials[0]
    spot = {"xytext": (-12, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
    axes.annotate(f"{best.value:.3f}", (max(best.values), best.value), **spot)
    axes.set(xlabel="epoch", ylabel="val_error")
    axes.set_title(f"all {len(trials)} trials: error on the validation split")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.43, -0.16), ncols=2, frameon=False)


if __name__ == "__main__":
    main(lambda: draw(parse_args(Picture)))
