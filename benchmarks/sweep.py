"""A sweep's idle time: from the command to the first training step, and the slots' time in use.

    python benchmarks/sweep.py [--starts 3] [--trials 20] [--trial-seconds 30]

Start: `sweeps/svhn.py` on a few house numbers (their cache is warm) until its first training step,
beside a bare process that imports torch, ray.tune and mlflow and starts Ray; they take turns. The
first step's time is that of the first epoch's record in MLflow, less the seconds of the epoch, so
the record's own delay is counted too.

Slots: a sweep of trials that sleep --trial-seconds in six epochs, two at a time, with all the rest
of a real one (actors, journal, checkpoints, MLflow); what it prints at its end.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from driver import State, Toy

from ali.cli import main
from ali.cli.common import check_at_least
from ali.config import Config
from ali.metrics import D_LOSS, EPOCH, G_LOSS, VAL_ERROR
from sweeps import Options, Sweep, launch
from sweeps.engine import tracking
from sweeps.engine.tracking.schema import DRIVER_SECONDS, KIND_TRIAL, SLOT_USE

EPOCHS = 6
BARE = (
    "import logging, time, torch, mlflow, ray; from ray import tune; "
    "ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING); "
    "print(time.time())"
)
SVHN = Path(__file__).parent.parent / "sweeps" / "svhn.py"
TINY = (
    "--data house-numbers --width 0.1 --train-size 200 --batch-size 50 --labels 20 --draws 1 "
    "--epochs 1 --num-trials 1"
)


def bare_start() -> float:
    start = time.time()
    ended = subprocess.run([sys.executable, "-c", BARE], check=True, capture_output=True)
    return float(ended.stdout) - start  # without Ray's end


def our_start() -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = time.time()
        command = [sys.executable, str(SVHN), "--name", "start", "--output-dir", folder]
        subprocess.run([*command, *TINY.split()], check=True, capture_output=True)
        client = tracking.connect(tracking.default_uri(Path(folder)))
        where = tracking.experiment_id(client, Path(folder))
        (run,) = tracking.find_runs(client, where, kind=KIND_TRIAL)
        (first,) = client.get_metric_history(run.info.run_id, EPOCH)
        spent = sum(run.data.metrics[key] for key in ("train_seconds", "eval_seconds"))
        return first.timestamp / 1000 - spent - start


class Sleeping(Toy):
    """Trials whose epochs together sleep `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def run(
        self, config: Config, dataset: None, state: State | None
    ) -> Iterator[tuple[State, dict[str, float]]]:
        for epoch in range(1, config.epochs + 1):
            time.sleep(self.seconds / EPOCHS)
            yield State(epoch), {EPOCH: epoch, VAL_ERROR: 1 / epoch, D_LOSS: 1.0, G_LOSS: 1.0}


def slot_use(trials: int, seconds: float, folder: Path) -> dict[str, float]:
    options = Options(
        name="slots",
        data="house-numbers",
        num_trials=trials,
        epochs=EPOCHS,
        grace_epochs=EPOCHS,  # none is stopped early
        max_concurrent=2,
        output_dir=folder,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        launch(Sweep(points_to_evaluate=(), experiment=Sleeping(seconds)), options)
    client = tracking.connect(options.uri)
    parent = tracking.find_sweep(client, tracking.experiment_id(client, folder), "slots")
    assert parent is not None
    return parent.data.metrics


def command() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--starts", type=int, default=3, help="of each side")
    parser.add_argument("--trials", type=int, default=20, help="of the sweep that sleeps")
    parser.add_argument("--trial-seconds", type=float, default=30.0, help="that each sleeps")
    options = parser.parse_args()
    check_at_least(1, starts=options.starts, trials=options.trials)
    our_start()  # fills the cache
    starts: dict[str, list[float]] = {"bare": [], "ours": []}
    for _ in range(options.starts):
        starts["bare"].append(bare_start())
        starts["ours"].append(our_start())
    bare, ours = (statistics.median(times) for times in starts.values())
    print(
        f"bare imports and Ray's start {bare:.1f} s, ours to the first step {ours:.1f} s: ", end=""
    )
    print(f"{ours / bare:.2f} times (medians of {options.starts})")
    with tempfile.TemporaryDirectory() as folder:
        found = slot_use(options.trials, options.trial_seconds, Path(folder))
    print(
        f"{options.trials} trials of {options.trial_seconds:g} s: slots in use "
        f"{found[SLOT_USE]:.1%} of {found[DRIVER_SECONDS]:.0f} s"
    )


if __name__ == "__main__":
    main(command)
