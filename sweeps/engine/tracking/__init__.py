"""Everything that is written to MLflow and read from it; `schema` has the names."""

from ali.output import without_password
from sweeps.engine.tracking.client import connect, default_uri, experiment_id
from sweeps.engine.tracking.queue import AsyncLogQueue
from sweeps.engine.tracking.runs import (
    best_trials,
    config_of,
    create_trial,
    data_of,
    describe,
    end_run,
    end_trial,
    experiment_of,
    find_runs,
    find_sweep,
    find_trial,
    lost_records,
    objective_of,
    open_trial,
    require_sweep,
    set_best_trials,
    start_sweep,
)
from sweeps.engine.tracking.schema import TrackingContext
from sweeps.engine.tracking.search import restore_sweep
from sweeps.engine.tracking.trial_run import TrialRun

__all__ = [
    "AsyncLogQueue",
    "TrackingContext",
    "TrialRun",
    "best_trials",
    "config_of",
    "connect",
    "create_trial",
    "data_of",
    "default_uri",
    "describe",
    "end_run",
    "end_trial",
    "experiment_id",
    "experiment_of",
    "find_runs",
    "find_sweep",
    "find_trial",
    "lost_records",
    "objective_of",
    "open_trial",
    "require_sweep",
    "restore_sweep",
    "set_best_trials",
    "start_sweep",
    "without_password",
]
