"""A sweep to report: a study in memory, and what MLflow would say of its trials."""

from types import SimpleNamespace

import numpy as np
import optuna
from PIL import Image

from ali.config import Config
from sweeps.engine.confirmation import CONFIRMS, CONTROL
from sweeps.engine.endings import Ending, EndState
from sweeps.engine.journal import CONFIG, EXPERIMENT, SCRIPT
from sweeps.engine.options import Options
from sweeps.engine.reporting.findings import Findings
from sweeps.engine.reporting.records import Span

LR = optuna.distributions.FloatDistribution(1e-5, 1e-2, log=True)
DROPOUT = optuna.distributions.FloatDistribution(0.0, 0.6)
REASON = "<script>alert('a name of a user')</script>"


def trial(number, end, value, epochs=4, **attributes):
    lr, dropout = 10 ** (-5 + (number % 7) / 2), 0.03 * number
    config = Config(lr_d=lr, lr_g=lr, dropout_x=dropout, epochs=4, seed=number)
    complete = end == EndState.COMPLETED
    ending = Ending(end, REASON if end == EndState.FAILED else f"{value} after epoch {epochs}")
    state = "COMPLETE" if complete else "FAIL" if end == EndState.FAILED else "PRUNED"
    values = {epoch: value + 0.1 * (epochs - epoch) for epoch in range(1, epochs + 1)}
    found = optuna.trial.create_trial(
        state=optuna.trial.TrialState[state],
        value=value if complete else None,
        params={"lr_d": lr, "dropout_x": dropout, **({"lr_g": lr} if number % 2 else {})},
        distributions={"lr_d": LR, "dropout_x": DROPOUT, **({"lr_g": LR} if number % 2 else {})},
        user_attrs={CONFIG: config.to_dict(), **ending.to_result(), **attributes},
        intermediate_values=values,
    )
    found.number = number
    return found


def run(one):
    name = f"{one.number:05d}"
    metrics = {"epoch": 4.0, "total_train_seconds": 30.0, "total_core_seconds": 30.0}
    metrics |= {"sample_distance": 1.0 + one.number}
    metrics |= {"sample_diversity": 0.9, "sample_separation": 0.8}
    info = SimpleNamespace(run_id=f"run{name}", status="FINISHED")
    data = SimpleNamespace(metrics=metrics, tags={"trial_id": name}, params={"threads": "2"})
    return SimpleNamespace(info=info, data=data)


def sweep() -> Findings:
    """16 trials, among them each kind of end, and another seed of the best."""
    trials = [trial(n, EndState.COMPLETED, 0.3 + 0.02 * n) for n in range(12)]
    trials[5].user_attrs[CONTROL] = True
    trials += [
        trial(12, EndState.STOPPED_EARLY, 0.9, 1),
        trial(13, EndState.DIVERGED, 0.8, 2),
        trial(14, EndState.FAILED, 0.7, 3),
        trial(15, EndState.COMPLETED, 0.34, 4, **{CONFIRMS: 1}),
    ]
    known = {"untrained_error": 0.6, "untrained_bn_error": 0.65, "raw_pixel_error": 0.8}
    parent = SimpleNamespace(data=SimpleNamespace(metrics=known, tags={"objective": "val_error"}))
    attributes = {SCRIPT: "svhn.py", EXPERIMENT: "AliExperiment"}
    options = Options(name="shown", num_trials=15, epochs=4, width=0.25, race=3)
    return Findings(options, trials, [run(one) for one in trials], parent, attributes=attributes)


class Logged:
    """As `Records`: two slots, and a picture after epochs 2 and 4 of each trial."""

    def spans(self, run):
        number = int(run.info.run_id[3:])
        return [Span(1000 + 30 * (number // 2), 1000 + 30 * (number // 2) + 29)]

    def epochs(self, run, key="samples"):
        return [2, 4]

    def image(self, run, epoch, key="samples"):
        number = int(run.info.run_id[3:])
        return Image.fromarray(np.full((64, 64, 3), 10 * number + epoch, np.uint8))
