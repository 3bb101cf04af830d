"""A sweep in MLflow's UI: the saved views that its links open, with columns, order and charts.

A view is a tag of the experiment, in the format of MLflow's own button Share. Its UI shows trials
below their sweep only while they are sorted by time; these views sort by the objective.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ali.metrics import (
    COLLAPSED,
    EPOCH,
    INTERPOLATIONS,
    RECONSTRUCTIONS,
    SAMPLE_DIVERSITY,
    SAMPLE_SEPARATION,
    SAMPLES,
)
from sweeps.engine.endings import END_STATE
from sweeps.engine.tracking.schema import INTERVAL, SWEEP, log10_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

VIEW = "mlflow.sharedViewState."  # and the view's key: a tag of an experiment
BEST = "/best"  # ends the key of the view that compares the best trials
COMPARED = 2  # of them
WIDTHS = {  # of columns, pixels
    INTERVAL: 130,
    END_STATE: 115,
    EPOCH: 65,
    SAMPLE_DIVERSITY: 125,
    SAMPLE_SEPARATION: 140,
}
WIDTH = 95  # of the others
PINNED = {"attributes.`Run Name`": 140, "runDateAndNestInfo": 135}  # that MLflow always shows

TRAINING = "workflowType=machine_learning"  # in links: MLflow's pages of runs, not those of GenAI

# The initial state of MLflow's UI: newer versions fill in what a view lacks, 3.11 fails.
DEFAULTS: dict[str, Any] = {
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "datasetsFilter": [],
    "modelVersionFilter": "All Runs",
    "runsExpanded": {},
    "runsPinned": [],
    "runsHidden": [],
    "runsVisibilityMap": {},
    "runsHiddenMode": "FIRST_10_RUNS",
    "viewMaximized": False,
    "runListHidden": False,
    "useGroupedValuesInCharts": True,
    "hideEmptyCharts": True,
    "groupBy": None,
    "groupsExpanded": {},
    "autoRefreshEnabled": True,
    "globalLineChartConfig": {
        "xAxisKey": "step",
        "lineSmoothness": 0,
        "selectedXAxisMetricKey": "",
    },
}


def view_key(sweep: str) -> str:
    """The name of a sweep's view: itself, if a tag may have that name."""
    if re.fullmatch(r"[\w.-]{1,100}", sweep, re.ASCII):
        return sweep
    return hashlib.sha256(sweep.encode()).hexdigest()[:16]


def view_path(experiment: str, sweep: str) -> str:
    """What follows the server's address in the link to a sweep's view: all trials as a table."""
    return _path(experiment, view_key(sweep))


def best_path(experiment: str, sweep: str) -> str:
    """The same of the view that shows the pictures of the best trials side by side."""
    return _path(experiment, view_key(sweep) + BEST) + "&compareRunsMode=CHART"


def _path(experiment: str, key: str) -> str:
    return f"#/experiments/{experiment}/runs?{TRAINING}&viewStateShareKey={quote(key)}"


def run_path(experiment: str, run_id: str, file: str = "") -> str:
    """The same of a run's page, or of one of its files."""
    artifact = f"/artifacts/{quote(file)}" if file else ""
    return f"#/experiments/{experiment}/runs/{run_id}{artifact}?{TRAINING}"


def save_view(
    client: MlflowClient,
    experiment: str,
    sweep: str,
    objective: str,
    searched: Sequence[str],
    epochs: int,
    ascending: bool = True,
) -> None:
    """Writes a sweep's view, unless it is there already.

    Args:
        searched: fields of the configuration that the search varies.
        epochs: the epoch whose pictures are shown first.
        ascending: the order of the objective, the best first.
    """
    where = f"tags.{SWEEP} = '{sweep}'"
    logged = [log10_name(name) or name for name in searched if name != "bn_x"]
    parallel = {"selectedParams": logged, "selectedMetrics": [objective], "showAllRuns": True}
    sections = [_section("pictures", "Pictures", 820), _section("search", "Search", 420)]
    charts = [
        _pictures([SAMPLES], epochs),
        _chart("PARALLEL", "search", **parallel),
        _chart("LINE", "search", metricKey=objective, selectedMetricKeys=[objective]),
    ]
    state = _view(where, objective, searched, sections, charts, ascending)
    _save(client, experiment, view_key(sweep), state)


def save_best_view(
    client: MlflowClient,
    experiment: str,
    sweep: str,
    objective: str,
    run_ids: Sequence[str],
    epochs: int,
    ascending: bool = True,
) -> None:
    """Writes the view of a sweep that compares its best trials, given by their runs.

    MLflow's charts show the last run first, so that the best one is on the left.
    """
    where = "attributes.run_id IN (" + ", ".join(f"'{one}'" for one in run_ids) + ")"
    keys = [SAMPLES, RECONSTRUCTIONS, INTERPOLATIONS]
    sections, charts = [_section("pictures", "Pictures", 1150)], [_pictures(keys, epochs)]
    state = _view(where, objective, [], sections, charts, not ascending)
    _save(client, experiment, view_key(sweep) + BEST, state | {"runListHidden": True})


def _save(client: MlflowClient, experiment: str, key: str, state: Mapping[str, Any]) -> None:
    text = json.dumps(state, separators=(",", ":"))
    if client.get_experiment(experiment).tags.get(VIEW + key) != text:
        client.set_experiment_tag(experiment, VIEW + key, text)


def _view(
    where: str,
    objective: str,
    searched: Sequence[str],
    sections: list[dict[str, Any]],
    charts: list[dict[str, Any]],
    ascending: bool,
) -> dict[str, Any]:
    """What MLflow's UI keeps of a view."""
    columns = [("metrics", objective), ("tags", INTERVAL)]
    columns += [("metrics", name) for name in COLLAPSED]
    columns += [("tags", END_STATE), ("metrics", EPOCH), *(("params", name) for name in searched)]
    shown = {f"{kind}.`{name}`": WIDTHS.get(name, WIDTH) for kind, name in columns}
    widths = PINNED | shown
    return DEFAULTS | {
        "searchFilter": where,
        "orderByKey": f"metrics.`{objective}`",
        "orderByAsc": ascending,
        "selectedColumns": list(shown),
        "columnOrder": list(widths),
        "columnWidths": widths,
        "isAccordionReordered": True,  # the sections in this order
        "compareRunSections": [*sections, _section("metrics", "Model metrics")],
        "compareRunCharts": charts,
    }


def _section(uuid: str, name: str, height: int | None = None) -> dict[str, Any]:
    """A section of charts; with a height each of them has a row of its own."""
    whole = {"columns": 1, "cardHeight": height} if height else {}
    return {"uuid": uuid, "name": name, "display": True, "isReordered": True} | whole


def _pictures(keys: list[str], epochs: int) -> dict[str, Any]:
    return _chart("IMAGE", "pictures", imageKeys=keys, step=epochs, showRunParams=False)


def _chart(kind: str, section: str, **more: Any) -> dict[str, Any]:
    uuid = f"{section}-{kind.lower()}"
    return {"type": kind, "uuid": uuid, "metricSectionId": section, "isGenerated": False} | more


def varied(configs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The fields in which the configurations of a sweep's trials differ, but for the seed."""
    names = configs[0] if configs else ()
    differ = (n for n in names if any(c.get(n) != configs[0][n] for c in configs) and n != "seed")
    return tuple(differ)
