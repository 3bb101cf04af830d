"""Optuna's dashboard on a copy of a sweep's study, in the words of the sweep.

The copy has the objective's name, how each trial ended and where it is in MLflow; what only the
machinery needs, and hyperparameters with one value, are left out. It is in memory: changes in the
dashboard do not affect the sweep.
"""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, create_trial

from ali.beside import beside
from ali.errors import UserError
from ali.metrics import VAL_ERROR
from sweeps.engine.endings import ending_of
from sweeps.engine.options import Location, Options
from sweeps.engine.reporting import find, findings
from sweeps.engine.results import load_study
from sweeps.engine.retry import ask_mlflow
from sweeps.engine.saved_options import saved_options
from sweeps.engine.study import CONFIG, confirms_of, trial_id
from sweeps.engine.tracking import runs
from sweeps.engine.tracking.access import refuse_taken_port
from sweeps.engine.tracking.client import connect, is_server
from sweeps.engine.tracking.schema import KIND_TRIAL, TRIAL
from sweeps.engine.tracking.view import run_path

HOST, MLFLOW_UI = "127.0.0.1", "http://127.0.0.1:5000"
REFRESH_SECONDS = 5.0
INSTALL = "pip install 'ali-sweeps[dashboard]', or make dashboard"


@dataclass(frozen=True, kw_only=True)
class DashboardOptions(Location):
    """Options of sweeps/dashboard.py."""

    port: int = 8080
    """Port of the dashboard on this machine."""
    mlflow_url: str | None = None
    """Address of the MLflow UI that trials are linked to; default: --tracking-uri if it is a
    server's, else http://127.0.0.1:5000, which is that of `make ui`."""


class StudyCopy:
    """A study in memory that follows a sweep's: trials are added, and running ones updated."""

    def __init__(self, options: Options, source: optuna.Study, objective: str) -> None:
        self.storage = InMemoryStorage()
        self.study = optuna.create_study(
            study_name=options.name, storage=self.storage, direction=source.direction
        )
        self.study.set_metric_names([objective])
        for name, value in {**source.user_attrs, "full budget": options.epochs}.items():
            self.study.set_user_attr(name, value)
        self._source, self.number = source, self.storage.get_study_id_from_name(options.name)
        self._ids: dict[int, int] = {}  # of trials in the copy, by their number

    def update(self, links: Mapping[str, str]) -> None:
        """Copies what is new. `links`: addresses of runs in MLflow, by trial id."""
        from optuna_dashboard import save_note

        for trial in self._source.get_trials(deepcopy=False):
            if CONFIG not in trial.user_attrs:
                continue
            shown, link = attributes(trial), links.get(trial_id(trial.number))
            if trial.number not in self._ids:
                copied = self._copied(trial, shown)
                copy = self.storage.create_new_trial(self.number, copied)
                self._ids[trial.number] = copy
                if link:
                    note = f"[Run of trial {trial_id(trial.number)} in MLflow]({link})"
                    save_note(optuna.Trial(self.study, copy), note)
            elif not self.storage.get_trial(self._ids[trial.number]).state.is_finished():
                self._follow(self._ids[trial.number], trial, shown)

    def _follow(self, copy: int, trial: FrozenTrial, shown: Mapping[str, Any]) -> None:
        known = self.storage.get_trial(copy).intermediate_values
        for step in trial.intermediate_values.keys() - known.keys():
            value = trial.intermediate_values[step]
            self.storage.set_trial_intermediate_value(copy, step, value)
        for name, value in shown.items():
            self.storage.set_trial_user_attr(copy, name, value)
        if trial.state.is_finished():
            self.storage.set_trial_state_values(copy, trial.state, trial.values)

    def _copied(self, trial: FrozenTrial, shown: dict[str, Any]) -> FrozenTrial:
        searched = {k for k, kind in trial.distributions.items() if not kind.single()}
        params = {k: v for k, v in trial.params.items() if k in searched}
        copied = create_trial(
            state=trial.state,
            values=trial.values,
            params=params,
            distributions={name: trial.distributions[name] for name in params},
            user_attrs=shown,
            intermediate_values=trial.intermediate_values,
        )
        copied.datetime_start = trial.datetime_start
        copied.datetime_complete = trial.datetime_complete
        return copied


def attributes(trial: FrozenTrial) -> dict[str, Any]:
    """What a trial's page shows besides its parameters and values."""
    ending, config = ending_of(trial), trial.user_attrs[CONFIG]
    shown: dict[str, Any] = {"trial": trial_id(trial.number), "seed": config.get("seed")}
    shown["epochs"] = max(trial.intermediate_values, default=0)
    if ending:
        shown |= {"end": ending.state.value, "why": ending.reason}
    if again := confirms_of(trial):
        shown["confirms"] = again
    return shown


def show_dashboard(asked: DashboardOptions) -> None:
    """Serves the dashboard until Ctrl-C. Raises UserError if it cannot."""
    try:
        import optuna_dashboard
    except ImportError:
        raise UserError(f"Optuna's dashboard is not installed: {INSTALL}") from None
    options = saved_options(asked)
    source = load_study(options)
    refuse_taken_port(HOST, asked.port)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    mlflow = _MlflowRuns(asked, options)
    copy = StudyCopy(options, source, mlflow.objective)
    copy.update(mlflow.links())
    if mlflow.verdict:
        optuna_dashboard.save_note(copy.study, mlflow.verdict)
    print(f"open http://{HOST}:{asked.port}/dashboard/studies/{copy.number} (Ctrl-C ends it)")
    with contextlib.ExitStack() as within:  # one line per request is noise
        null = within.enter_context(open(os.devnull, "w", encoding="utf-8"))
        within.enter_context(beside(lambda ended: _follow(copy, mlflow, ended)))
        within.enter_context(contextlib.redirect_stderr(null))
        within.enter_context(contextlib.redirect_stdout(null))
        optuna_dashboard.run_server(copy.storage, HOST, asked.port)


def _follow(copy: StudyCopy, mlflow: _MlflowRuns, ended: threading.Event) -> None:
    while not ended.wait(REFRESH_SECONDS):
        with contextlib.suppress(UserError):  # the journal is being moved, say
            copy.update(mlflow.links())


class _MlflowRuns:
    """Where a sweep's trials are in MLflow; without MLflow, the dashboard has no links."""

    def __init__(self, asked: DashboardOptions, options: Options) -> None:
        self._name, self.objective, self.verdict = options.name, VAL_ERROR, ""
        self._url = asked.mlflow_url or (options.uri if is_server(options.uri) else MLFLOW_UI)
        self._experiment = ""
        self._links: dict[str, str] = {}
        try:
            client = self._client = connect(options.uri, existing=True)
            self._experiment = ask_mlflow(lambda: runs.experiment_of(client, options.name))
            where = (load_study(options), client, self._experiment)
            found = ask_mlflow(lambda: find(options, *where))
            self.objective = found.objective
            self.verdict = "\n\n".join(findings.verdict(found))
        except UserError as error:
            print(f"note: no links to MLflow: {error}")

    def links(self) -> dict[str, str]:
        """Addresses of runs, by trial id; the last known ones if MLflow is down."""
        if self._experiment:
            with contextlib.suppress(Exception):
                self._links = self._ask()
        return self._links

    def _ask(self) -> dict[str, str]:
        known = runs.find_runs(self._client, self._experiment, sweep=self._name, kind=KIND_TRIAL)
        server = self._url.rstrip("/")
        paths = {run.data.tags[TRIAL]: run_path(self._experiment, run.info.run_id) for run in known}
        return {name: f"{server}/{path}" for name, path in paths.items()}
