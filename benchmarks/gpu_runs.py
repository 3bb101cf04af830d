"""Sections `resume`, `sweep`, `tests` and `training`: whole commands, as users run them."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch

from ali import data, experiment
from ali.cli.common import write_png
from ali.config import Config
from ali.evaluation import protocol
from ali.figures.annotated import marked
from ali.figures.grids import epoch_pictures
from ali.metrics import (
    EPOCH,
    IMAGES_PER_SECOND,
    SAMPLE_DISTANCE,
    SAMPLE_DIVERSITY,
    VAL_ERROR,
)
from ali.training import checkpoint
from benchmarks.gpu_device import house_numbers
from benchmarks.gpu_rows import Outcome, Row, Run, attempt, goal
from benchmarks.step import gflop_an_image

ROOT = Path(__file__).resolve().parents[1]
TRAINING = 180.0  # seconds
LAST = 20.0  # seconds that the last evaluation and its pictures may take
EVALUATIONS = 6  # of the training, about
CURVE = "val_error"  # picture of the learning curve


def command(*arguments: object) -> list[str]:
    return [sys.executable, *map(str, arguments)]


def logged(arguments: list[str]) -> None:
    """Runs a command; its output goes to the log as it comes. Raises RuntimeError if it fails."""
    last = "no output"
    with _started(arguments) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            last = line.strip() or last
        code = process.wait()
    if code:
        raise RuntimeError(f"exit code {code}: {last}")


# Killed and resumed --------------------------------------------------------------------------


def resume(run: Run) -> Iterator[Row]:
    """One training in one go, and one that is killed -9 in its second epoch and resumed."""
    what = "killed and resumed, the bits of one go"
    yield from attempt(what, lambda: _resume(run, what))


def _resume(run: Run, what: str) -> Iterator[Row]:
    config = house_numbers(run)
    options = "--data house-numbers --epochs 3 --eval-every 3 --draws 1"
    options += " --train-size 400" if run.small else ""  # an epoch lasts until the kill arrives
    options += f" --width {config.width} --batch-size {config.batch_size} --labels {config.labels}"
    train = command("-m", "ali", "train", *options.split(), "--output-dir")
    whole, killed = run.work / "whole", run.work / "killed"
    with _started([*train, str(whole)]) as one:
        with _started([*train, str(killed)]) as other:
            _wait_for_epoch(other, 1)
            time.sleep(0.05)
            other.send_signal(signal.SIGKILL)
            if other.wait() != -signal.SIGKILL:
                raise RuntimeError("the training ended before it could be killed")
        before = checkpoint.read_manifest(killed / "checkpoint").epoch
        logged(command("-m", "ali", "train", "--resume", "--output-dir", killed))
        if one.wait():
            raise RuntimeError("the training in one go failed")
    kept = [checkpoint.read_manifest(folder / "checkpoint") for folder in (whole, killed)]
    same = kept[0].files == kept[1].files and kept[0].generator == kept[1].generator
    note = f"on the {'GPU' if run.cuda else 'CPU'}, killed after epoch {before} of 3"
    if not same:
        note += f"; largest difference of a weight {_apart(whole, killed):.2g}"
    yield goal(what, same, note=note)


def _apart(one: Path, other: Path) -> float:
    weights = []
    for folder in (one / "checkpoint", other / "checkpoint"):
        weights += checkpoint.read(folder, checkpoint.WEIGHTS)[1]
    return max(float((a - weights[1][name]).abs().max()) for name, a in weights[0].items())


def _wait_for_epoch(training: subprocess.Popen[str], epoch: int) -> None:
    """Waits until the training reports the epoch's checkpoint."""
    assert training.stdout is not None
    said = []
    for line in training.stdout:
        said.append(line.strip())
        if line.startswith(f"epoch {epoch}/"):
            return
    raise RuntimeError(f"the training ended early: {' '.join(said[-3:])}")


@contextlib.contextmanager
def _started(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive the block."""
    with subprocess.Popen(
        arguments, text=True, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


# A sweep -------------------------------------------------------------------------------------


def sweep(run: Run) -> Iterator[Row]:
    """Trials of a quarter of the paper's width, as in `make sweep`."""
    yield from attempt("sweep", lambda: _sweep(run))


def _sweep(run: Run) -> Iterator[Row]:
    from sweeps.engine import tracking
    from sweeps.engine.tracking.schema import DRIVER_SECONDS, KIND_TRIAL, SLOT_USE

    folder, trials = run.work / "sweeps", 2 if run.small else 8
    options = "--data house-numbers --levels 2 --draws 1 --race 0"
    if run.small:
        options += " --width 0.1 --train-size 200 --batch-size 50 --labels 20 --epochs 1"
    else:
        options += " --width 0.25 --batch-size 32 --epochs 2 --train-size 4000"
    options += f" --num-trials {trials}"
    uri = tracking.default_uri(folder)
    place = ("--name", "gpu", "--output-dir", folder, "--tracking-uri", uri)
    start = time.monotonic()
    logged(command(ROOT / "sweeps" / "svhn.py", *options.split(), *place))
    took = time.monotonic() - start
    client = tracking.connect(uri)
    where = tracking.experiment_id(client, folder)
    metrics = tracking.require_sweep(client, where, "gpu").data.metrics
    trial_runs = tracking.find_runs(client, where, kind=KIND_TRIAL)
    ends = [one.data.tags.get("end_state", "none") for one in trial_runs]
    told = ", ".join(f"{ends.count(end)} {end}" for end in dict.fromkeys(sorted(ends)))
    gpus = next((one.data.tags["gpus"] for one in trial_runs if "gpus" in one.data.tags), None)
    what = f"{trials} trials" + (f" with {gpus} GPU each" if gpus else "")
    yield Row(what, took, "s", note=told, details={"options": options})
    if SLOT_USE in metrics:
        note = f"of {metrics[DRIVER_SECONDS]:.0f} s that the driver ran"
        yield Row("slots in use", 100 * metrics[SLOT_USE], "%", note=note)
    best = min((one.data.metrics.get(VAL_ERROR, 1.0) for one in trial_runs), default=1.0)
    yield Row("val_error of the best", best)


# Tests ---------------------------------------------------------------------------------------


def tests(run: Run) -> Iterator[Row]:
    """The tests marked `cuda`, which are skipped elsewhere."""
    yield from attempt("tests", lambda: _tests(run))


def _tests(run: Run) -> Iterator[Row]:
    sources = sorted((ROOT / "tests").rglob("test_*.py"))
    files = [path for path in sources if "pytest.mark.cuda" in path.read_text(encoding="utf-8")]
    if not files:
        raise RuntimeError("no test is marked `cuda`")
    report = run.work / "tests.xml"
    pytest = command("-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider")
    others = ("--continue-on-collection-errors", f"--junitxml={report}", *map(str, files))
    try:
        logged([*pytest, *others])
    except RuntimeError:
        if not report.exists():  # else it says which tests failed
            raise
    yield from rows_of_tests(ElementTree.parse(report).getroot())


def rows_of_tests(report: ElementTree.Element) -> Iterator[Row]:
    """From pytest's JUnit report: how many passed, and one row per test that did not."""
    cases = list(report.iter("testcase"))
    wrong = {
        c: f for kind in ("error", "failure") for c in cases if (f := c.find(kind)) is not None
    }
    left = sum(case.find("skipped") is not None for case in cases)
    passed = len(cases) - len(wrong) - left
    note = f"of {len(cases)}" + f", {left} skipped" * bool(left)
    yield goal("tests passed", not wrong and passed > 0, passed, note=note)
    for case, failure in wrong.items():
        message = (failure.get("message") or "").splitlines() or [""]
        yield Row(case.get("name", "?"), outcome=Outcome.FAILED, note=message[0][:160])


# A training ----------------------------------------------------------------------------------


def training(run: Run) -> Iterator[Row]:
    """The paper's settings on house numbers for three minutes, or what is left of the time."""
    yield from attempt("training", lambda: _training(run))


def _training(run: Run) -> Iterator[Row]:
    start = time.monotonic()
    limit = 2.0 if run.small else max(20.0, min(TRAINING, run.seconds - LAST))
    config = house_numbers(run).replace(epochs=100_000, eval_every=100_000)
    dataset, device = data.load(config), torch.device(run.device)
    state = experiment.new_state(config, dataset, device)
    untrained = protocol.val_error(state.networks, dataset, config)
    yield Row("val_error of the encoder before training", untrained)
    curve: list[dict[str, float]] = []
    rates: list[float] = []
    begun = time.monotonic()
    for _, metrics in experiment.run(config, dataset, state, device):
        rates.append(metrics[IMAGES_PER_SECOND])
        now = time.monotonic()
        over = now - start > limit
        if over or now - begun > len(curve) * (limit / EVALUATIONS):
            metrics |= experiment.evaluate(state, dataset, config)
            curve.append(metrics | {"seconds": now - start})
            print(curve[-1], flush=True)
            _write_pictures(run, epoch_pictures(state.networks, dataset, config), curve, untrained)
        if over:
            break
    yield from _summary(run, config, state, curve, rates, time.monotonic() - start)


def _summary(
    run: Run,
    config: Config,
    state: Any,
    curve: list[dict[str, float]],
    rates: list[float],
    took: float,
) -> Iterator[Row]:
    last, rate = curve[-1], float(np.median(rates))
    gflop = gflop_an_image(state.networks)
    note = f"to epoch {last[EPOCH]:.0f}, {state.step:,} steps of {config.batch_size}; "
    note += f"{took:.0f} s with evaluations"
    yield Row("training", rate, "images/s", run.share(rate, gflop), note=note)
    best = min(curve, key=lambda one: one[VAL_ERROR])
    note = f"lowest {best[VAL_ERROR]:.3f}, after epoch {best[EPOCH]:.0f}"
    yield Row("val_error", last[VAL_ERROR], note=note, details={"curve": curve})
    note = f"diversity {last[SAMPLE_DIVERSITY]:.2f}"
    yield Row("sample_distance", last[SAMPLE_DISTANCE], note=note)


def _write_pictures(
    run: Run, pictures: dict[str, np.ndarray], curve: list[dict[str, float]], untrained: float
) -> None:
    """Writes pictures over those of the evaluation before."""
    tile = 32
    for name, picture in pictures.items():
        write_png(run.output / f"{name}.png", marked(name, picture, tile))
    write_png(run.output / f"{CURVE}.png", _draw(curve, untrained))


def _draw(curve: list[dict[str, float]], untrained: float) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.plot([one["seconds"] for one in curve], [one[VAL_ERROR] for one in curve], marker="o")
    axes.axhline(untrained, color="0.4", linestyle="--", label="untrained encoder")
    axes.legend(frameon=False)
    axes.set(xlabel="seconds, evaluations included", ylabel="val_error", xlim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
