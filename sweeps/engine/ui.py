"""MLflow's UI: the links that open sweeps in it, and its server where there is none."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ali import environment
from ali.output import first_line, without_password
from sweeps.engine.options import Location
from sweeps.engine.retry import ask_mlflow
from sweeps.engine.tracking import runs
from sweeps.engine.tracking.access import refuse_taken_port
from sweeps.engine.tracking.client import (
    MLFLOW_ENVIRONMENT,
    connect,
    default_uri,
    is_database,
    is_server,
)
from sweeps.engine.tracking.schema import KIND_TRIAL, NOTE, SWEEP, TrackingContext
from sweeps.engine.tracking.view import (
    BEST,
    COMPARED,
    VIEW,
    best_path,
    run_path,
    save_view,
    varied,
    view_key,
    view_path,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

HOST = "127.0.0.1"
# Nothing is printed over the links, and no processes are started for GenAI's jobs.
SERVER_ENVIRONMENT = {
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PYTHONWARNINGS": "ignore",
}


@dataclass(frozen=True, kw_only=True)
class UiOptions:
    """What is shown, and where."""

    name: str | None = None
    """Name of a sweep; default: all."""
    output_dir: Path = field(default_factory=environment.output_dir)
    """Folder of all sweeps; default: $ALI_OUTPUT_DIR, or runs."""
    tracking_uri: str | None = None
    """MLflow server or database; default: the sweep's, else $MLFLOW_TRACKING_URI, else the file
    mlflow.db in --output-dir."""
    port: int = 5000
    """Port of the UI, on this machine."""

    @property
    def uri(self) -> str:
        """The MLflow address, by the same rule as in other commands."""
        if self.name is not None:
            given = {"output_dir": self.output_dir, "tracking_uri": self.tracking_uri}
            return Location(name=self.name, **given).uri  # type: ignore[arg-type]
        return self.tracking_uri or environment.tracking_uri() or default_uri(self.output_dir)


def serve_ui(options: UiOptions) -> None:
    """Prints the links, and becomes the server of the UI, unless there is one.

    Raises UserError if MLflow cannot be found, or has no such sweep.
    """
    uri = options.uri
    client = connect(uri, existing=True)
    server = without_password(uri) if is_server(uri) else f"http://{HOST}:{options.port}"
    if is_database(uri):
        refuse_taken_port(HOST, options.port)
    for line in ask_mlflow(lambda: list(links(client, server, options.name))):
        print(line, flush=True)
    if not is_database(uri):
        return
    print("serving MLflow's UI; Ctrl-C ends it", flush=True)
    # The address may hold a password, which a command line would show to all users.
    environment.set_defaults(**MLFLOW_ENVIRONMENT, **SERVER_ENVIRONMENT)
    environment.set_values(MLFLOW_BACKEND_STORE_URI=uri)  # of the links above
    serve = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--host", HOST]
    serve += ["--port", str(options.port), "--uvicorn-opts", "--log-level warning"]
    os.execv(sys.executable, serve)


def links(client: MlflowClient, server: str, name: str | None) -> Iterator[str]:
    """Lines with the links of each sweep, the newest first, or of one.

    Raises UserError if there is no sweep of this name.
    """
    if name is not None:
        sweeps = [runs.require_sweep(client, runs.experiment_of(client, name), name)]
    else:
        sweeps = sorted(runs.all_sweeps(client), key=lambda run: -run.info.start_time)
    for run in sweeps:
        _add_views(client, run)
        sweep, experiment = run.data.tags[SWEEP], run.info.experiment_id
        yield f"sweep {sweep}"
        yield f"  all trials      {server.rstrip('/')}/{view_path(experiment, sweep)}"
        if len(runs.best_trials(run)) >= COMPARED:
            yield f"  the best two    {server.rstrip('/')}/{best_path(experiment, sweep)}"
        if NOTE in run.data.tags:
            yield f"  front page      {server.rstrip('/')}/{run_path(experiment, run.info.run_id)}"


def _add_views(client: MlflowClient, run: Run) -> None:
    """Writes the views of a sweep that an earlier version has run."""
    name, experiment = run.data.tags[SWEEP], run.info.experiment_id
    tags = client.get_experiment(experiment).tags
    if VIEW + view_key(name) in tags and VIEW + view_key(name) + BEST in tags:
        return
    trials = runs.find_runs(client, experiment, sweep=name, kind=KIND_TRIAL)
    configs, objective = [runs.config_of(trial) for trial in trials], runs.objective_of(run)
    epochs = max((config.get("epochs", 0) for config in configs), default=0)
    direction = runs.direction_of(run)
    to = TrackingContext(
        client.tracking_uri, experiment, name, run.info.run_id, objective, direction=direction
    )
    try:
        ascending = direction != "maximize"
        save_view(client, experiment, name, objective, varied(configs), epochs, ascending)
        runs.set_best_trials(client, to, runs.best_trials(run))
    except Exception as error:  # this login may only read
        print(f"note: the view of {name} was not written: {first_line(error)}", flush=True)
