"""Runs in MLflow, found by their tags: a parent run per sweep, a child run per trial."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from ali.errors import UserError
from ali.metrics import EPOCH, VAL_ERROR
from sweeps.engine.endings import END_REASON, END_STATE, Ending, EndState
from sweeps.engine.tracking.access import refusals
from sweeps.engine.tracking.schema import (
    ANYTHING,
    BEST_TRIALS,
    CONFIG,
    CONFIRMS,
    DATA,
    DIRECTION,
    FORMULA,
    INTERVAL,
    KIND,
    KIND_SWEEP,
    KIND_TRIAL,
    METRICS,
    MISSING,
    OBJECTIVE,
    OPTIONS,
    PARENT,
    RUN_NAME,
    STATUS,
    SWEEP,
    TEXTS,
    TRIAL,
    TrackingContext,
    config_text,
    missing_text,
    parameters,
    read_missing,
)
from sweeps.engine.tracking.search import DELETED, restore, search, search_sweeps
from sweeps.engine.tracking.view import COMPARED, save_best_view

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

T = TypeVar("T")


def find_runs(client: MlflowClient, experiment: str, **tags: str) -> list[Run]:
    """All runs that have these tags."""
    return search(client, [experiment], tags)


def find_sweep(client: MlflowClient, experiment: str, sweep: str) -> Run | None:
    """The parent run of a sweep, or None."""
    found = find_runs(client, experiment, **{SWEEP: sweep, KIND: KIND_SWEEP})
    return found[0] if found else None


def require_sweep(client: MlflowClient, experiment: str, sweep: str) -> Run:
    """The parent run of a sweep. Raises UserError if there is none, naming the known sweeps."""
    if run := find_sweep(client, experiment, sweep):
        return run
    raise _unknown(sweep, find_runs(client, experiment, kind=KIND_SWEEP))


def _unknown(sweep: str, known: Sequence[Run]) -> UserError:
    names = ", ".join(sorted({run.data.tags.get(SWEEP, "") for run in known})) or "none"
    return UserError(f"MLflow has no sweep {sweep!r}: it has {names}")


def all_sweeps(client: MlflowClient) -> list[Run]:
    """The runs of all sweeps."""
    return search_sweeps(client)


def experiment_of(client: MlflowClient, sweep: str) -> str:
    """The experiment that holds a sweep. Raises UserError if there is none; creates none."""
    if found := search_sweeps(client, sweep):
        return found[0].info.experiment_id
    if found := search_sweeps(client, sweep, DELETED):
        info = found[0].info
        gone = client.get_experiment(info.experiment_id).lifecycle_stage == "deleted"
        what = f"experiments restore --experiment-id {info.experiment_id}"
        what = what if gone else f"runs restore --run-id {info.run_id}"
        raise UserError(
            f"sweep {sweep!r} was deleted in MLflow: restore it (mlflow {what}), or --resume it"
        )
    raise _unknown(sweep, search_sweeps(client))


def objective_of(run: Run) -> str:
    """The metric that a run's sweep compares its trials by."""
    return run.data.tags.get(OBJECTIVE, VAL_ERROR)


def direction_of(run: Run) -> str:
    """Whether a run's sweep minimizes or maximizes that."""
    return run.data.tags.get(DIRECTION, "minimize")


def formula_of(run: Run) -> str | None:
    """What that metric is computed from, if it is arithmetic of others."""
    return run.data.tags.get(FORMULA)


def config_of(run: Run) -> dict[str, Any]:
    """The whole configuration of a run, as plain JSON types; empty if it was not logged yet."""
    return _read_tag(run, CONFIG, {})


def why_interrupted(run: Run) -> str | None:
    """Why a sweep that does not run was interrupted; None: it runs, or has ended."""
    tags = run.data.tags
    interrupted = tags.get(END_STATE) == EndState.INTERRUPTED.value
    return tags.get(END_REASON) if interrupted and run.info.status != "RUNNING" else None


def options_of(run: Run) -> dict[str, Any]:
    """Options and space of a sweep; as text, from parameters, if an earlier version ran it."""
    return _read_tag(run, OPTIONS, dict(run.data.params))


def data_of(run: Run) -> str | None:
    """The fingerprint of a run's data; None if it was not logged yet."""
    return run.data.tags.get(DATA, run.data.params.get(DATA))


def best_trials(run: Run) -> list[str]:
    """Ids of a sweep's best trials, best first, as its driver has written them to its run."""
    empty: list[Any] = []
    return [str(one) for one in _read_tag(run, BEST_TRIALS, empty)]


def _read_tag(run: Run, name: str, empty: T) -> T:
    """Reads a JSON tag. Raises UserError if it is no JSON, or of another type than `empty`."""
    text = run.data.tags.get(name, json.dumps(empty))
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, type(empty)):
        raise UserError(
            f"in MLflow, tag {name!r} of run {run.info.run_id} is damaged ({text[:40]!r}): resume "
            "the sweep (--resume), which writes it again"
        )
    return value


def start_sweep(
    client: MlflowClient,
    experiment: str,
    sweep: str,
    objective: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> str:
    """Opens the parent run of a sweep, or opens it again; returns its run id.

    Args:
        params: what tells it from other sweeps, as parameters.
        options: its options and space, as one tag.
    """
    run = find_sweep(client, experiment, sweep)
    with refusals(client.tracking_uri):
        if run is None:
            own = {SWEEP: sweep, KIND: KIND_SWEEP, RUN_NAME: sweep, OBJECTIVE: objective}
            run = client.create_run(experiment, tags={**own, **(tags or {})})
            for other in find_runs(client, experiment, sweep=sweep):
                if other.data.tags[KIND] != KIND_SWEEP:  # its parent is gone
                    client.set_tag(other.info.run_id, PARENT, run.info.run_id)
        if new := {k: v for k, v in params.items() if k not in run.data.params}:
            describe(client, run.info.run_id, new)
        if options and run.data.tags.get(OPTIONS) != (text := config_text(options)):
            client.set_tag(run.info.run_id, OPTIONS, text)
        if run.info.status != "RUNNING":
            client.update_run(run.info.run_id, status="RUNNING")
    return run.info.run_id


def describe(
    client: MlflowClient,
    run_id: str,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Writes parameters and tags of a run in one request."""
    from mlflow.entities import Param, RunTag

    client.log_batch(
        run_id,
        params=[Param(key, to_text(value)) for key, value in (params or {}).items()],
        tags=[RunTag(key, value) for key, value in (tags or {}).items()],
    )


def to_text(value: Any) -> str:
    """A parameter as MLflow shows it; nothing reads it back."""
    if isinstance(value, (list, tuple)):
        return ",".join(to_text(v) for v in value)
    return str(value)


def set_best_trials(client: MlflowClient, to: TrackingContext, ids: Sequence[str]) -> None:
    """Writes the ids of the best trials, best first, to the sweep's run, and their view."""
    restore(client, to.parent_run_id)
    client.set_tag(to.parent_run_id, BEST_TRIALS, json.dumps(list(ids)))
    if best := [run for id_ in ids[:COMPARED] if (run := find_trial(client, to, id_))]:
        epochs, found = config_of(best[0]).get("epochs", 0), [run.info.run_id for run in best]
        ascending = to.direction != "maximize"
        save_best_view(client, to.experiment, to.sweep, to.objective, found, epochs, ascending)


def set_intervals(
    client: MlflowClient, to: TrackingContext, intervals: Mapping[str, str], known: dict[str, str]
) -> None:
    """Writes intervals to the runs of trials, by id, where they differ from those `known`."""
    for trial_id, interval in intervals.items():
        if known.get(trial_id) != interval and (run := find_trial(client, to, trial_id)):
            client.set_tag(run.info.run_id, INTERVAL, interval)
            known[trial_id] = interval


def end_run(client: MlflowClient, run_id: str, ending: Ending) -> None:
    """Writes how a run ended, and why."""
    describe(client, run_id, tags=ending.to_result())
    client.set_terminated(run_id, STATUS[ending.state])


def find_trial(
    client: MlflowClient, to: TrackingContext, trial_id: str, kind: str = KIND_TRIAL
) -> Run | None:
    """The run of a trial, or of its full training (`kind`), or None."""
    found = find_runs(client, to.experiment, **{SWEEP: to.sweep, TRIAL: trial_id, KIND: kind})
    return found[0] if found else None


def restore_trial(client: MlflowClient, to: TrackingContext, trial_id: str) -> Run | None:
    """The run of a trial as `find_trial`, restored if it was deleted."""
    # Under this sweep's run: an earlier sweep of this name may be in the trash, too.
    tags = {TRIAL: trial_id, KIND: KIND_TRIAL, PARENT: to.parent_run_id}
    found = search(client, [to.experiment], tags, DELETED)
    if not found:
        return None
    restore(client, found[0].info.run_id)
    return found[0]


def create_trial(
    client: MlflowClient,
    to: TrackingContext,
    trial_id: str,
    kind: str = KIND_TRIAL,
    config: Mapping[str, Any] | None = None,
) -> Run:
    """Opens the run of a trial, or of its full training, under its sweep's."""
    tags = {SWEEP: to.sweep, TRIAL: trial_id, KIND: kind, PARENT: to.parent_run_id}
    if config:
        tags[CONFIG] = config_text(config)
    tags |= {OBJECTIVE: to.objective, DIRECTION: to.direction}
    tags |= {FORMULA: to.formula} if to.formula else {}
    tags[RUN_NAME] = f"{to.sweep}-{trial_id}" + ("" if kind == KIND_TRIAL else f"-{kind}")
    return client.create_run(to.experiment, tags=tags)


def logged_epochs(client: MlflowClient, run: Run) -> set[int]:
    """The epochs that a run holds."""
    if EPOCH not in run.data.metrics:
        return set()
    return {metric.step for metric in client.get_metric_history(run.info.run_id, EPOCH)}


def _any_trial(
    client: MlflowClient, to: TrackingContext, trial_id: str, config: Mapping[str, Any] | None
) -> Run:
    """The run of a trial: found, restored or created."""
    found = find_trial(client, to, trial_id) or restore_trial(client, to, trial_id)
    return found or create_trial(client, to, trial_id, config=config)


def open_trial(
    client: MlflowClient,
    to: TrackingContext,
    trial_id: str,
    config: Mapping[str, Any] | None = None,
) -> Run:
    """Creates a trial's run, or marks the existing one as running. Only the driver calls this."""
    run = _any_trial(client, to, trial_id, config)
    if run.info.status != "RUNNING":
        client.update_run(run.info.run_id, status="RUNNING")
    return run


def keep_open(
    client: MlflowClient, to: TrackingContext, running: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Restores the runs of a sweep and of trials that somebody has deleted while they run.

    Returns the ids of trials whose runs were gone and are created anew: their workers log their
    metrics again. Only the driver calls this. Raises MlflowException if the sweep's own run is gone
    (`is_gone`).

    Args:
        running: configurations by id.
    """
    restore(client, to.parent_run_id)
    tags = {SWEEP: to.sweep, KIND: KIND_TRIAL}
    found = search(client, [to.experiment], tags, status="RUNNING")
    known, anew = {run.data.tags[TRIAL] for run in found}, []
    for trial_id in sorted(running.keys() - known):
        if not (find_trial(client, to, trial_id) or restore_trial(client, to, trial_id)):
            create_trial(client, to, trial_id, config=running[trial_id])
            anew.append(trial_id)
    return anew


def followed(client: MlflowClient, to: TrackingContext) -> TrackingContext:
    """Where a sweep logs to now: its driver may have recreated its run, or experiment.

    Raises UserError if MLflow no longer has it.
    """
    if not (found := search_sweeps(client, to.sweep)):
        raise UserError(
            f"MLflow has no sweep {to.sweep!r} any more (was `mlflow gc` run?): resume the sweep "
            "(--resume), which writes it anew"
        )
    parent = found[0].info
    return replace(to, experiment=parent.experiment_id, parent_run_id=parent.run_id)


def end_trial(
    client: MlflowClient,
    to: TrackingContext,
    trial_id: str,
    ending: Ending,
    values: Mapping[int, float] | None = None,
    config: Mapping[str, Any] | None = None,
    confirms: str | None = None,
) -> None:
    """Writes how a trial ended into its run. Only the driver calls this.

    `confirms`: the trial whose configuration it repeats. Adds what the run lacks of `values` (the
    objective by epoch) and of `config`: it was lost with the process that was to log it.
    """
    from mlflow.entities import Metric, RunTag

    run = _any_trial(client, to, trial_id, config)
    params = parameters(config or {}, to.searched)
    if lacking := {k: v for k, v in params.items() if k not in run.data.params}:
        describe(client, run.info.run_id, lacking)
    if confirms is not None:
        client.set_tag(run.info.run_id, CONFIRMS, confirms)
    logged, now = logged_epochs(client, run), int(time.time() * 1000)
    missing = [(epoch, value) for epoch, value in (values or {}).items() if epoch not in logged]
    if missing:
        pairs = [(to.objective, value, epoch) for epoch, value in missing]
        pairs += [(EPOCH, epoch, epoch) for epoch, _ in missing]
        metrics = [Metric(key, value, now, epoch) for key, value, epoch in pairs]
        lost = read_missing(run.data.tags)  # the other metrics of these epochs
        lost[METRICS] = lost.get(METRICS, set()) | {epoch for epoch, _ in missing}
        tags = [RunTag(MISSING, missing_text(lost))]
        client.log_batch(run.info.run_id, metrics=metrics, tags=tags)
    if run.data.tags.get(END_STATE) != ending.state.value or not run.info.end_time:
        end_run(client, run.info.run_id, ending)
    elif run.info.status != STATUS[ending.state]:  # as an earlier version wrote it
        client.update_run(run.info.run_id, status=STATUS[ending.state])


def lost_records(trials: Sequence[Run]) -> str:
    """A sentence on the trials' records that MLflow lacks; empty: it has all."""
    lacking: dict[str, list[str]] = defaultdict(list)
    for run in sorted(trials, key=lambda run: run.data.tags[TRIAL]):
        for kind, epochs in read_missing(run.data.tags).items():
            countless = kind in (TEXTS, ANYTHING)
            count = "" if countless else f" ({len(epochs)} epoch{'s' * (len(epochs) > 1)})"
            lacking[kind].append(run.data.tags[TRIAL] + count)
    unknown = lacking.pop(ANYTHING, [])
    what = "; ".join(f"{kind} of {', '.join(names)}" for kind, names in lacking.items())
    lacks = [f"it lacks {what}"] if what else []
    lacks += [f"it may lack any records of {', '.join(unknown)}"] if unknown else []
    told = "MLflow did not take all records of the trials: "
    return told + ", and ".join(lacks) if lacks else ""
