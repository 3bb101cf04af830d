"""Counts what a toy sweep lost, has twice or left running: Tune, Optuna and MLflow, trial by trial.

    python benchmarks/fault_audit.py FOLDER NAME TRIALS [--uri URI]     prints a Count as JSON

FOLDER holds toy.log, the driver's output driver.log, and runs/.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "integration"))

from harness import EPOCHS, MLFLOW_STATUS, Toy
from mlflow import MlflowClient
from toy_sweep import value

from ali.config import Config
from ali.metrics import VAL_ERROR
from sweeps.engine import tracking

USUAL = (tracking.COMPLETED, tracking.STOPPED)  # ends of a trial that nothing went wrong with


@dataclass
class Count:
    """What an audit found: a line each, but for the numbers."""

    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    beyond: list[str] = field(default_factory=list)  # trials that did too much again
    repeated: int = 0  # epochs trained once more
    starts: int = 0  # of a trial, its first one left out
    best: float | None = None  # val_error of the trial that `best.py` would take
    points: list[Any] = field(default_factory=list)  # parameters, state and value of each trial


def count(
    toy: Toy, trials: int, ends: dict[str, list[str]] | None = None, interval: int = 1
) -> Count:
    """Audits a sweep that has ended.

    Args:
        trials: that there are to be.
        ends: the ends that a trial may have, by trial id; default: USUAL.
        interval: epochs that a restart of a trial may repeat.
    """
    found, client = Count(), MlflowClient(toy.uri)
    expected = [f"{number:05d}" for number in range(trials)]
    study = {f"{t.number:05d}": t for t in toy.study().get_trials()}
    tune, runs, parents = toy.tune(), toy.mlflow(), toy.parents()

    found.duplicated += [f"{name} is one too many" for name in {*study, *tune, *runs} - {*expected}]
    found.duplicated += [f"{name}: {len(own)} runs" for name, own in runs.items() if len(own) > 1]
    if len(parents) != 1 or parents[0].info.status != "FINISHED":
        found.stuck.append(f"the sweep: {[run.info.status for run in parents]}")
    for name in expected:
        own, trial, status = runs.get(name, []), study.get(name), tune.get(name)
        if not own or trial is None or status is None:
            found.lost.append(f"{name} is not in all of Tune, Optuna and MLflow")
            continue
        states = {status, trial.state.name, *(run.info.status for run in own)}
        if states & {"RUNNING", "WAITING", "PENDING", "PAUSED"}:
            found.stuck.append(f"{name}: {states}")
            continue
        tags = own[0].data.tags
        end = tags.get(tracking.END)
        same = (
            status == "TERMINATED"
            and own[0].info.status == MLFLOW_STATUS[trial.state.name]
            and trial.user_attrs.get(tracking.END) == end
        )
        if not same or end not in (ends or {}).get(name, USUAL):
            found.lost.append(f"{name}: {states}, {end}: {tags.get(tracking.REASON)}")
            continue
        history = client.get_metric_history(own[0].info.run_id, VAL_ERROR)
        logged = {metric.step: metric.value for metric in history}
        if len(history) > len(logged):
            found.duplicated.append(f"{name}: an epoch is logged twice")
        if tracking.CONFIG not in tags or not {"lr_d", "seed"} <= set(own[0].data.params):
            found.lost.append(f"{name}: its run does not say what it trained")
            continue
        config = Config.from_dict(json.loads(tags[tracking.CONFIG]))
        last = EPOCHS if end == tracking.COMPLETED else max(logged, default=0)
        right = {epoch: value(config, epoch) for epoch in range(1, last + 1)}
        if not logged == trial.intermediate_values == right:
            found.lost.append(f"{name}: {logged} in MLflow, {trial.intermediate_values} in Optuna")
    _repeats(toy, found, interval)
    if any(trial.state.name == "COMPLETE" for trial in study.values()):
        experiment = client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
        found.best = tracking.best_trial(client, experiment, toy.name).data.metrics[VAL_ERROR]
    found.points = [[t.params, t.state.name, t.value] for t in study.values()]
    return found


def _repeats(toy: Toy, found: Count, interval: int) -> None:
    log = (toy.folder / "driver.log").read_text()
    starts = Counter(re.findall(r"trial (\d{5}) (?:starts|goes on)", log))
    again: Counter[str] = Counter()
    for (seed, _), times in toy.epochs().items():
        again[f"{seed:05d}"] += times - 1
    found.repeated, found.starts = again.total(), sum(n - 1 for n in starts.values())
    for name, times in again.items():
        if times > (allowed := interval * (starts[name] - 1)):
            found.beyond.append(f"{name} repeated {times} epochs, {allowed} at most were expected")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("trials", type=int)
    parser.add_argument("--uri", help="tracking server; default: runs/mlflow.db in FOLDER")
    options = parser.parse_args()
    toy = Toy(options.folder, options.name, server=options.uri)
    print(json.dumps(asdict(count(toy, options.trials))))


if __name__ == "__main__":
    main()
