"""The names under which sweeps and trials are stored in MLflow: tags, metrics, kinds of run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from ali import environment
from sweeps.engine.endings import EndState

EXPERIMENT = "ali"  # experiment_name says where it has another name
# Tags of a run
CONFIG = "config"  # the whole configuration as JSON: what a run is repeated from
SWEEP, TRIAL, KIND = "sweep", "trial_id", "kind"
OBJECTIVE = "objective"  # the metric that trials are compared by; val_error if the tag is absent
DIRECTION, FORMULA = "direction", "formula"  # of the objective; minimize, and none, if absent
BEST_TRIALS = "best_trials"  # of a sweep's run: ids of its best trials, best first, as JSON
CONFIRMS = "confirms"  # of a trial that repeats another with a fresh seed: the other's id
BEST_OF = "best_of_run"  # of a full training: run id of the trial whose configuration it has
TESTED = "tested"  # of a full training: what its test error was measured on
MISSING = "missing"  # of a trial: what MLflow did not take, as JSON: epochs by kind of record
PARENT, RUN_NAME = "mlflow.parentRunId", "mlflow.runName"
METRICS, PICTURES, TEXTS = "metrics", "pictures", "texts"  # kinds of records
# Values of KIND
KIND_SWEEP, KIND_TRIAL, KIND_BEST = "sweep", "trial", "best"
# Metrics of a sweep's run: the share of its slots' time that trials used, with its last driver
SLOT_USE, DRIVER_SECONDS = "slot_use", "driver_seconds"
# Metrics of a trial's run: totals over its restarts
TOTAL_TRAIN_SECONDS, TOTAL_EVAL_SECONDS = "total_train_seconds", "total_eval_seconds"
TOTAL_CORE_SECONDS = "total_core_seconds"  # both, times its threads
# MLflow's status of a run that ended
STATUS = {
    EndState.COMPLETED: "FINISHED",
    EndState.STOPPED_EARLY: "KILLED",
    EndState.INTERRUPTED: "KILLED",
    EndState.DIVERGED: "FAILED",
    EndState.COLLAPSED: "FAILED",
    EndState.OUT_OF_MEMORY: "FAILED",
    EndState.FAILED: "FAILED",
}


@dataclass(frozen=True)
class TrackingContext:
    """Where a trial logs to: travels from the driver to every trial."""

    uri: str
    experiment: str
    sweep: str
    parent_run_id: str
    objective: str
    direction: str = "minimize"
    formula: str | None = None  # of the objective, where it is arithmetic of other metrics
    variables: Mapping[str, str] = field(
        default_factory=environment.tracking_variables, repr=False
    )  # the driver's login and the like


def experiment_name(uri: str) -> str:
    """The experiment of all sweeps: Databricks wants a path in the workspace."""
    return f"/Shared/{EXPERIMENT}" if uri.split(":")[0] == "databricks" else EXPERIMENT


def read_missing(tags: Mapping[str, str]) -> dict[str, set[int]]:
    """What a run's tags say MLflow did not take: epochs, by kind of record."""
    try:
        found = json.loads(tags.get(MISSING, "{}")).items()
        return {kind: set(epochs) for kind, epochs in found if epochs}
    except (ValueError, TypeError, AttributeError):  # MLflow cuts off a long tag
        return {}


def missing_text(missing: Mapping[str, set[int]]) -> str:
    """The inverse of `read_missing`: the value of the tag."""
    return json.dumps({kind: sorted(epochs) for kind, epochs in missing.items() if epochs})
