"""Where a sweep stands, from anywhere that reaches its MLflow: no file of the sweep is read.

python sweeps/status.py --name NAME [--tracking-uri URI]
"""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ali.errors import UserError
from ali.metrics import EPOCH
from sweeps.engine import tracking
from sweeps.engine.driver import output_folder
from sweeps.engine.reporting import WIDTH

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

BEST_SHOWN = 3
RUNNING = "RUNNING"  # MLflow's status


@dataclass(frozen=True)
class Options:
    """Options of the status."""

    name: str
    """Name of the sweep."""
    tracking_uri: str | None = None
    """MLflow server; default: $MLFLOW_TRACKING_URI, or mlflow.db in --output-dir."""
    output_dir: Path = field(default_factory=output_folder)
    """Folder of all sweeps, where there is no server; default: $ALI_OUTPUT_DIR, or runs."""


def status(client: MlflowClient, experiment: str, name: str) -> str:
    """The state of a sweep as text: its end states, its running trials, its best so far.

    Raises UserError where MLflow has no sweep of this name.
    """
    parent = tracking.find_sweep(client, experiment, name)
    if parent is None:
        sweeps = tracking.find_runs(client, experiment, kind=tracking.KIND_SWEEP)
        known = ", ".join(sorted(run.data.tags[tracking.SWEEP] for run in sweeps)) or "none"
        raise UserError(f"MLflow knows no sweep {name!r}: known are {known}")
    trials = tracking.find_runs(client, experiment, sweep=name, kind=tracking.KIND_TRIAL)
    running = [run for run in trials if run.info.status == RUNNING]
    ends = Counter(run.data.tags.get(tracking.END, "") for run in trials if run not in running)
    state = "running" if parent.info.status == RUNNING else parent.data.tags[tracking.END]
    console = Console(width=WIDTH, color_system=None)
    wanted = parent.data.params.get("num_trials", "?")
    counts = "".join(f", {count} {end}" for end, count in sorted(ends.items()))
    objective = tracking.objective_of(parent)
    with console.capture() as text:
        console.print(f"sweep {name}: {state}; of {wanted} trials {len(running)} running{counts}")
        done = [run for run in trials if run.data.tags.get(tracking.END) == tracking.COMPLETED]
        done = [run for run in done if objective in run.data.metrics]
        best = sorted(done, key=tracking.rank)[:BEST_SHOWN]
        for title, runs in (("running", running), ("best at full budget", best)):
            if runs:
                console.print(_table(client, title, runs, objective))
    return text.get()


def _table(client: MlflowClient, title: str, runs: list[Run], objective: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("trial", "epoch", objective, "last heard of", "run"):
        table.add_column(heading, justify="right", no_wrap=True)
    for run in runs:
        value = run.data.metrics.get(objective)
        epochs = client.get_metric_history(run.info.run_id, EPOCH)
        last = max((metric.timestamp for metric in epochs), default=run.info.start_time)
        table.add_row(
            run.data.tags[tracking.TRIAL],
            f"{len(epochs)}/{run.data.params.get('epochs', '?')}",
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


def show_status(options: Options) -> None:
    """Prints the status of a sweep."""
    given = options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if given is None and not (options.output_dir / "mlflow.db").exists():
        raise UserError(
            f"there is no mlflow.db in {options.output_dir}: give --tracking-uri or --output-dir"
        )
    client = tracking.connect(given or tracking.default_uri(options.output_dir))
    where = tracking.experiment_id(client, options.output_dir)
    print(status(client, where, options.name), end="")
