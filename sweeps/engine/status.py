"""The state of a sweep, from any machine that reaches its MLflow: no file of the sweep is read."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from rich.table import Table

from ali.metrics import EPOCH
from ali.output import console
from sweeps.engine.endings import END_STATE
from sweeps.engine.options import Location
from sweeps.engine.reporting import WIDTH
from sweeps.engine.retry import ask_mlflow
from sweeps.engine.tracking import runs
from sweeps.engine.tracking.client import connect
from sweeps.engine.tracking.schema import CONFIRMS, KIND_TRIAL, TRIAL

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

BEST_SHOWN = 3
RUNNING = "RUNNING"  # MLflow's status


def status(client: MlflowClient, experiment: str, name: str) -> str:
    """The state of a sweep as text: its end states, its running trials, its best so far.

    The sweep's driver has written to MLflow which trials are best. Raises UserError if
    MLflow has no sweep of this name.
    """
    parent = runs.require_sweep(client, experiment, name)
    trials = runs.find_runs(client, experiment, sweep=name, kind=KIND_TRIAL)
    by_id = {run.data.tags[TRIAL]: run for run in trials}
    running = [run for run in trials if run.info.status == RUNNING]
    ended = [run for run in trials if run not in running]
    again = sum(CONFIRMS in run.data.tags for run in ended)
    ends = Counter(run.data.tags.get(END_STATE, "") for run in ended)
    state = "running" if parent.info.status == RUNNING else parent.data.tags.get(END_STATE, "ended")
    out = console(width=WIDTH, color_system=None)
    wanted = runs.options_of(parent).get("num_trials", "?")
    counts = "".join(f", {count} {end}" for end, count in sorted(ends.items()))
    objective = runs.objective_of(parent)
    with out.capture() as text:
        counts += f"; {again} of them confirm another" if again else ""
        out.print(f"sweep {name}: {state}; of {wanted} trials {len(running)} running{counts}")
        best = [by_id[id_] for id_ in runs.best_trials(parent)[:BEST_SHOWN] if id_ in by_id]
        for title, shown in (("running", running), ("best at full budget", best)):
            if shown:
                out.print(_table(client, title, shown, objective))
    return text.get()


def show_status(location: Location) -> None:
    """Prints the status of a sweep. Raises UserError if its MLflow cannot be found."""
    client, name = connect(location.uri, existing=True), location.name
    print(ask_mlflow(lambda: status(client, runs.experiment_of(client, name), name)), end="")


def _table(client: MlflowClient, title: str, shown: list[Run], objective: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("trial", "epoch", objective, "last result", "run"):
        table.add_column(heading, justify="right", no_wrap=True)
    for run in shown:
        value = run.data.metrics.get(objective)
        epochs = client.get_metric_history(run.info.run_id, EPOCH)
        last = max((metric.timestamp for metric in epochs), default=run.info.start_time)
        table.add_row(
            run.data.tags[TRIAL],
            f"{len(epochs)}/{runs.config_of(run).get('epochs', '?')}",
            "–" if value is None else f"{value:.4f}",
            _ago(time.time() - last / 1000),
            run.info.run_id,
        )
    return table


def _ago(seconds: float) -> str:
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if (count := int(seconds // size)) >= 1:
            return f"{count} {unit}{'s' * (count > 1)} ago"
    return f"{max(0, seconds):.0f} s ago"
