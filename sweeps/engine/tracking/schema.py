"""The names under which sweeps and trials are stored in MLflow: tags, metrics, kinds of run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ali import environment
from sweeps.engine.endings import EndState

EXPERIMENT = "ali"  # experiment_name says where it has another name
# Tags of a run
CONFIG = "config"  # the whole configuration as JSON: what a run is repeated from
OPTIONS = "options"  # of a sweep's run: its options and its space, as JSON
DATA = "data_fingerprint"  # of the data it has; earlier versions have it as a parameter
SWEEP, TRIAL, KIND = "sweep", "trial_id", "kind"
OBJECTIVE = "objective"  # the metric that trials are compared by; val_error if the tag is absent
DIRECTION, FORMULA = "direction", "formula"  # of the objective; minimize, and none, if absent
EXPERIMENT_CLASS = "experiment_class"  # of a sweep's run: what its trials run, if not ALI
BEST_TRIALS = "best_trials"  # of a sweep's run: ids of its best trials, best first, as JSON
CONFIRMS = "confirms"  # of a trial that repeats another with a fresh seed: the other's id
BEST_OF = "best_of_run"  # of a full training: run id of the trial whose configuration it has
TESTED = "tested"  # of a full training: what its test error was measured on
INTERVAL = "interval_95"  # of a trial: of its configuration's mean objective, by all its runs
MISSING = "missing"  # of a trial: what MLflow did not take, as JSON: {"pictures": "3-17,20"}
NOTE = "mlflow.note.content"  # the description of a run, Markdown
PARENT, RUN_NAME = "mlflow.parentRunId", "mlflow.runName"
METRICS, PICTURES, TEXTS = "metrics", "pictures", "texts"  # kinds of records
ANYTHING = "anything"  # in place of kinds: it is not known what is missing
TAG_LENGTH = 8000  # characters that MLflow keeps of a tag
LAST_EPOCH = 10**6  # of a tag MISSING that is taken for one of ours
# Values of KIND
KIND_SWEEP, KIND_TRIAL, KIND_BEST = "sweep", "trial", "best"
# Metrics of a sweep's run: the share of its slots' time that trials used, with its last driver
SLOT_USE, DRIVER_SECONDS = "slot_use", "driver_seconds"
FRONT_PAGE_SECONDS = "front_page_seconds"  # time to write its description and figures
# Metrics of a trial's run: totals over its restarts
TOTAL_TRAIN_SECONDS, TOTAL_EVAL_SECONDS = "total_train_seconds", "total_eval_seconds"
TOTAL_CORE_SECONDS = "total_core_seconds"  # both, times its threads
LOG_SCALE = ("lr_d", "lr_g", "weight_std")  # and 1 − β₂: searched on a log scale
# MLflow's status of a run that ended: one that the scheduler stopped has done its job, and FAILED
# has a red cross. The end is in the tag end_state.
STATUS = {
    EndState.COMPLETED: "FINISHED",
    EndState.STOPPED_EARLY: "FINISHED",
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
    searched: tuple[str, ...] = ()  # fields of the configuration that the search varies
    direction: str = "minimize"
    formula: str | None = None  # of the objective, where it is arithmetic of other metrics
    variables: Mapping[str, str] = field(
        default_factory=environment.tracking_variables, repr=False
    )  # the driver's login and the like


def experiment_name(uri: str) -> str:
    """The experiment of all sweeps: Databricks wants a path in the workspace."""
    return f"/Shared/{EXPERIMENT}" if uri.split(":")[0] == "databricks" else EXPERIMENT


def parameters(config: Mapping[str, Any], searched: Sequence[str]) -> dict[str, Any]:
    """What tells a sweep's runs apart: the searched fields, and the seed.

    What is searched on a log scale has its log10 beside it: MLflow's axes are linear. One that the
    paper's table decides (None) is left out, since an axis of numbers shows no words.
    """
    found: dict[str, Any] = {}
    for name in (*searched, *(["seed"] if "seed" in config else [])):
        if (value := config.get(name)) is None:
            continue
        found[name] = value
        if log10 := log10_name(name):
            found[log10] = round(math.log10(1 - value if name.startswith("beta2") else value), 4)
    return found


def log10_name(field: str) -> str | None:
    """The parameter beside a field that is searched on a log scale."""
    if field.startswith("beta2"):
        return f"log10_one_minus_{field}"
    return f"log10_{field}" if field in LOG_SCALE else None


def config_text(config: Mapping[str, Any]) -> str:
    """A configuration as the value of a tag, of which MLflow keeps 8000 characters."""
    return json.dumps(config, ensure_ascii=False, default=str)


def read_missing(tags: Mapping[str, str]) -> dict[str, set[int]]:
    """What a run's tags say MLflow did not take: epochs, by kind of record.

    The kind is ANYTHING if that cannot be read: MLflow cut off a long tag of an earlier version.
    """
    try:
        found = json.loads(tags.get(MISSING, "{}")).items()
        missing = {kind: _from_ranges(epochs) for kind, epochs in found}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {ANYTHING: {0}}
    return {kind: epochs for kind, epochs in missing.items() if epochs}


def missing_text(missing: Mapping[str, set[int]]) -> str:
    """The inverse of `read_missing`: the value of the tag. If it is too long, it says ANYTHING."""
    text = json.dumps({kind: _to_ranges(epochs) for kind, epochs in missing.items() if epochs})
    return text if len(text) <= TAG_LENGTH else json.dumps({ANYTHING: "0"})


def _to_ranges(numbers: set[int]) -> str:
    """{3, 4, 5, 20} → "3-5,20"."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1][1:] = [number]
        else:
            ranges.append([number])
    return ",".join("-".join(map(str, ends)) for ends in ranges)


def _from_ranges(text: str | list[int]) -> set[int]:
    """The inverse; earlier versions wrote a list. Raises ValueError or TypeError for what is none.

    Neither repeats a number nor goes beyond LAST_EPOCH, so a tag that somebody has edited cannot
    fill the memory.
    """
    if not isinstance(text, str):
        return {int(number) for number in text}
    found: set[int] = set()
    following = 0
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers = range(int(first), int(last or first) + 1)
        if not following <= numbers.start < numbers.stop <= LAST_EPOCH + 1:
            raise ValueError(text)
        found.update(numbers)
        following = numbers.stop
    return found
