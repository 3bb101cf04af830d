"""A sweep over a toy objective: the whole machinery (Ray, Optuna, MLflow, files), seconds a trial.

val_error falls with epochs towards a floor that depends on lr_d and dropout_x. The driver's
environment says what goes wrong, and when (TOY, a JSON object: {"<trial number>":
"<fault>@<epoch>"}), how long an epoch takes (TOY_SECONDS) and where each epoch leaves a line
(TOY_LOG). Trials have that from the driver: on a cluster their environment is another.
"""

import json
import math
import os
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np

from ali.cli import main
from ali.errors import NonFiniteError, UserError
from sweeps.engine.driver import Options, Sweep, launch, parse
from sweeps.engine.space import brief, paper
from sweeps.engine.trial import Experiment

_HELD: list = []


class ToyState:
    def __init__(self, epoch=0):
        self.epoch = epoch

    def save(self, folder):
        folder.mkdir(parents=True)
        (folder / "epoch.json").write_text(json.dumps(self.epoch))


def load(folder, config):
    try:
        return ToyState(json.loads((folder / "epoch.json").read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"no toy checkpoint: {error}") from None


def value(config, epoch):
    """val_error, which the configuration alone decides."""
    floor = 0.2 + 0.1 * abs(math.log10(config.lr_d / 3e-4)) + 0.3 * abs(config.dropout_x - 0.1)
    return floor + 0.6 * math.exp(-epoch / 3)


def run(told, config, state):
    fault, when = _fault(told, config)
    seconds = float(told.get("TOY_SECONDS", "0.02"))
    log = Path(told["TOY_LOG"])
    state = state or ToyState()
    while state.epoch < config.epochs:
        time.sleep(seconds)
        epoch = state.epoch + 1
        with log.open("a") as file:
            file.write(f"{config.seed} {epoch}\n")
        if epoch == when:
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
    if fault == "memory":
        np.ones(2**50)
    while fault == "hog":  # until the machine runs low on memory
        _HELD.append(np.ones(2**24))
        time.sleep(0.1)
    marker = Path(f"{log}.{fault}")
    if fault.endswith("-once") and marker.exists():
        return
    marker.touch()
    if fault in ("die", "die-once"):
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "stop-once":  # all its threads, those that answer Ray too
        os.kill(os.getpid(), signal.SIGSTOP)


def pictures(state, config):
    return {"samples": np.full((8, 8, 3), 20 * state.epoch, np.uint8)}


def fingerprint(told, config):
    fault, when = _fault(told, config)
    if when == 0:  # before the first epoch, where a trial looks at its data
        _break(fault, when, Path(f"{told['TOY_LOG']}.0"))
    return "toy"


def objective(config):
    return "val_error"


def sweep():
    options = parse(Options(name="toy", num_trials=6, epochs=6, data="house-numbers"))
    told = {key: text for key, text in os.environ.items() if key.startswith("TOY")}
    looks = partial(fingerprint, told)
    experiment = Experiment(partial(run, told), load, pictures, looks, objective)
    return launch(Sweep(first=(paper, brief), experiment=experiment), options)


if __name__ == "__main__":
    main(sweep)
