"""What MLflow costs a trial: the share of its time that goes into logging.

    python benchmarks/logging_cost.py [--epochs 3] [--width 0.25] [--train-size 8000]

A trial as `make sweep` trains it, logging to a sqlite database: each epoch its metrics, every third
epoch and the last its pictures. It counts the seconds that the training thread spends in logging
calls (the pictures' rendering and the wait at the trial's end included) and the processor seconds
of the thread that talks to MLflow.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from ali import data, experiment
from ali.cli import main
from ali.cli.common import check_at_least
from ali.config import Config
from ali.metrics import VAL_ERROR
from ali.training.step import device
from sweeps.engine import tracking
from sweeps.engine.experiment import AliExperiment
from sweeps.engine.trial import versions


def command() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--epochs", type=int, default=3, help="epochs of the trial")
    parser.add_argument("--width", type=float, default=0.25, help="multiplier of the feature maps")
    parser.add_argument("--train-size", type=int, default=8000, help="images an epoch")
    options = parser.parse_args()
    check_at_least(1, epochs=options.epochs, train_size=options.train_size)
    torch.set_num_threads(1)  # a trial's share of `make sweep` on two cores
    config = Config(
        width=options.width,
        train_size=options.train_size,
        batch_size=32,
        epochs=options.epochs,
        draws=2,
    )
    dataset = data.load(config)
    with tempfile.TemporaryDirectory() as folder:
        uri = tracking.default_uri(Path(folder))
        client = tracking.connect(uri)
        where = tracking.experiment_id(client, Path(folder))
        parent = tracking.start_sweep(client, where, "cost", VAL_ERROR, {})
        to = tracking.TrackingContext(uri, where, "cost", parent, VAL_ERROR)
        tracking.open_trial(client, to, "00000")
        run = tracking.TrialRun(to, "00000", {**config.to_dict(), **versions()})
        background: list[float] = []
        run.queue.put(lambda: background.append(time.thread_time()))

        start, pictures, calls = time.perf_counter(), 0.0, 0.0
        for state, metrics in experiment.run(config, dataset, device=device()):
            began = time.perf_counter()
            shown = state.epoch % 3 == 0 or state.epoch == config.epochs
            images = AliExperiment().pictures(state, config, dataset) if shown else {}
            pictures += time.perf_counter() - began
            began = time.perf_counter()
            run.epoch(metrics, images)
            calls += time.perf_counter() - began
        began = time.perf_counter()
        run.queue.put(lambda: background.append(time.thread_time()))
        run.queue.close()
        end = time.perf_counter() - began
        total = time.perf_counter() - start
    rows = {
        "rendering pictures": pictures,
        "handing records over": calls,
        "waiting at the end": end,
        "the logging thread (processor)": background[1] - background[0],
    }
    print(f"a trial of {config.epochs} epochs, {total:.0f} s, width {config.width:g}")
    for name, seconds in rows.items():
        print(f"{name:32} {seconds:7.2f} s  {seconds / total:6.2%}")
    print(f"{'together':32} {sum(rows.values()):7.2f} s  {sum(rows.values()) / total:6.2%}")


if __name__ == "__main__":
    main(command)
