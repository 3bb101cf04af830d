"""A sweep over a toy objective: the whole machinery (Ray, Optuna, MLflow, files), seconds a trial.

val_error falls with epochs towards a floor that depends on lr_d and dropout_x. The driver's
environment says what goes wrong, and when (TOY, a JSON object: {"<trial number>":
"<fault>@<epoch>"}), how long an epoch takes (TOY_SECONDS), what the data's fingerprint is
(TOY_DATA) and where each epoch leaves a line
(TOY_LOG: seed, epoch, process, time of its end; each start of a trial leaves one in the same file
with .starts: seed, epochs in its checkpoint, process). Trials have that from the driver: on a
cluster their environment is another.
"""

import json
import math
import os
import signal
import time
from pathlib import Path

import numpy as np
import ray

from ali.cli import main
from ali.errors import NonFiniteError, UserError
from sweeps import Experiment, Options, Sweep, launch, paper_defaults, parse, short_budget

_HELD: list = []


class ToyState:
    def __init__(self, epoch=0):
        self.epoch = epoch

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "epoch.json").write_text(json.dumps([self.epoch] * 2))  # any damage shows


class ToyExperiment(Experiment):
    """`told`: the driver's environment, as far as it is for the toy."""

    def __init__(self, told):
        self.told = told

    def set_threads(self, threads):
        """Imports no torch, which takes longer than a trial."""

    def load_data(self, config):
        fault, when = _fault(self.told, config)
        if when == 0 and ray.is_initialized():  # in a trial, before its first epoch
            _break(fault, when, Path(f"{self.told['TOY_LOG']}.0"))
        return self.told.get("TOY_DATA", "toy")

    def objective(self, config, dataset):
        return "val_error"

    def fingerprint(self, dataset):
        return dataset

    def run(self, config, dataset, state):
        return run(self.told, config, state)

    def load_state(self, folder, config):
        try:
            first, second = json.loads((folder / "epoch.json").read_text())
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"no toy checkpoint: {error}") from None
        if first != second:
            raise UserError("a damaged toy checkpoint")
        return ToyState(first)

    def pictures(self, state, config, dataset):
        return {"samples": np.full((8, 8, 3), 20 * state.epoch, np.uint8)}


def value(config, epoch):
    """val_error, which the configuration alone decides."""
    floor = 0.2 + 0.1 * abs(math.log10(config.lr_d / 3e-4)) + 0.3 * abs(config.dropout_x - 0.1)
    return floor + 0.6 * math.exp(-epoch / 3)


def run(told, config, state):
    fault, when = _fault(told, config)
    seconds = float(told.get("TOY_SECONDS", "0.02"))
    log = Path(told["TOY_LOG"])
    state = state or ToyState()
    _note(f"{log}.starts", config.seed, state.epoch, os.getpid())
    while state.epoch < config.epochs:
        time.sleep(seconds)
        epoch = state.epoch + 1
        _note(log, config.seed, epoch, os.getpid(), f"{time.time():.3f}")
        if epoch == when or (epoch < when and fault == "die-each"):
            _break(fault, epoch, log)
        state = ToyState(epoch)
        yield (
            state,
            {
                "epoch": epoch,
                "d_loss": 1.0,
                "g_loss": 2.0,
                "images_per_second": 100.0,
                "train_seconds": seconds,
                "val_error": value(config, epoch),
            },
        )


def _note(file, *fields):
    with open(file, "a") as out:
        out.write(" ".join(map(str, fields)) + "\n")


def _fault(told, config):
    """What goes wrong in a trial, and in which epoch."""
    fault, _, when = (
        json.loads(told.get("TOY", "{}")).get(str(config.seed), "none@-1").partition("@")
    )
    return fault, int(when)


def _break(fault, epoch, log):
    if fault == "nan":
        raise NonFiniteError(epoch, ("d_loss",))
    if fault == "crash":
        raise RuntimeError("a bug that a second try would meet again")
    if fault == "brackets":
        raise ValueError("size [64, 3] of [/layers/0] ± [bold]")
    if fault == "memory":
        np.ones(2**50)
    while fault == "hog":  # until the machine runs low on memory
        _HELD.append(np.ones(2**24))
        time.sleep(0.1)
    marker = Path(f"{log}.{fault}{epoch if fault == 'die-each' else ''}")
    if fault.endswith(("-once", "-each")) and marker.exists():
        return
    marker.touch()
    if fault in ("die", "die-once", "die-each"):
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "cuda-once":
        import torch

        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    if fault == "stop-once":  # all its threads, those that answer Ray too
        os.kill(os.getpid(), signal.SIGSTOP)


def sweep():
    options = parse(Options(name="toy", num_trials=6, epochs=6, data="house-numbers"))
    told = {key: text for key, text in os.environ.items() if key.startswith("TOY")}
    points = (paper_defaults, short_budget)
    return launch(Sweep(points_to_evaluate=points, experiment=ToyExperiment(told)), options)


if __name__ == "__main__":
    main(sweep)
