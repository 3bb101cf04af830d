"""Finds runs by their tags, in MLflow's trash, too, and restores them from there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from sweeps.engine.tracking.schema import KIND, KIND_SWEEP, SWEEP

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.store.entities import PagedList

T = TypeVar("T")
log = logging.getLogger(__name__)

PAGE = 1000  # results that are asked for at once
ACTIVE, DELETED, ALL = "active_only", "deleted_only", "all"  # views on runs, as MLflow names them


def search(
    client: MlflowClient,
    experiments: list[str],
    tags: Mapping[str, str],
    view: str = ACTIVE,
    status: str | None = None,
) -> list[Run]:
    """All runs that have these tags, the newest first; `view`: ACTIVE, DELETED or ALL."""
    from mlflow.entities import ViewType

    where = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    where += f" and attributes.status = '{status}'" if status else ""
    kind = ViewType.from_string(view)
    return _all_pages(partial(client.search_runs, experiments, where, kind))


def search_sweeps(client: MlflowClient, sweep: str | None = None, view: str = ACTIVE) -> list[Run]:
    """As `search`, the parent runs of sweeps in all experiments: theirs may have been renamed."""
    from mlflow.entities import ViewType

    known = _all_pages(partial(client.search_experiments, ViewType.ALL))
    tags = {KIND: KIND_SWEEP} | ({SWEEP: sweep} if sweep else {})
    return search(client, [one.experiment_id for one in known], tags, view)


def _all_pages(ask: Callable[..., PagedList[T]]) -> list[T]:
    """All that a search of MLflow's finds, which it gives in pages."""
    found: list[T] = []
    token = None
    while True:
        page = ask(max_results=PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def restore_sweep(client: MlflowClient, sweep: str) -> str | None:
    """Restores a sweep's run and experiment if they were deleted; returns the latter.

    Takes the newest of this name. None if MLflow has neither.
    """
    found = search_sweeps(client, sweep, ALL)
    if not found:
        return None
    restore(client, found[0].info.run_id)
    return found[0].info.experiment_id


def restore(client: MlflowClient, run_id: str) -> None:
    """Restores a run, and its experiment with all runs in it, if somebody has deleted them.

    Raises MlflowException if it is gone (`is_gone`).
    """
    experiment = client.get_run(run_id).info.experiment_id
    if client.get_experiment(experiment).lifecycle_stage == "deleted":
        log.warning("experiment %s was deleted in MLflow: restored, as a run needs it", experiment)
        client.restore_experiment(experiment)
    if client.get_run(run_id).info.lifecycle_stage == "deleted":
        log.warning("run %s was deleted in MLflow: restored, as its sweep needs it", run_id)
        client.restore_run(run_id)


def is_gone(error: Exception) -> bool:
    """Whether an error says that a run, or its experiment, was deleted for good (`mlflow gc`)."""
    from mlflow.exceptions import MlflowException

    return isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST"
