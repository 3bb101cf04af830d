"""Updates MLflow from the study with what a killed driver or an outage kept from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ali.metrics import EPOCH
from ali.output import first_line
from sweeps.engine.confirmation import intervals
from sweeps.engine.endings import END_STATE, Ending, EndState, ending_of
from sweeps.engine.retry import Retry, is_temporary
from sweeps.engine.study import CONFIG, Study, best_trials, confirms_of, trial_id
from sweeps.engine.tracking import runs
from sweeps.engine.tracking.schema import (
    INTERVAL,
    KIND,
    KIND_BEST,
    KIND_TRIAL,
    STATUS,
    TRIAL,
    TrackingContext,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient


def reconcile(client: MlflowClient, to: TrackingContext, study: Study, named: int) -> None:
    """Writes to MLflow what only the study knows: endings, values, the best trials.

    Args:
        named: how many of the best trials the sweep's run names.
    """
    known = runs.find_runs(client, to.experiment, sweep=to.sweep, kind=KIND_TRIAL)
    found = {run.data.tags[TRIAL]: run for run in known}
    trials = study.trials()
    for trial in trials:
        ending, name = ending_of(trial), trial_id(trial.number)
        if ending is None:
            continue
        run, values = found.get(name), trial.intermediate_values
        if (
            run is None
            or run.info.status != STATUS[ending.state]
            or run.data.tags.get(END_STATE) != ending.state.value
            or run.data.metrics.get(EPOCH, 0) < max(values, default=0)
        ):
            config = trial.user_attrs.get(CONFIG)
            again = confirms_of(trial)
            runs.end_trial(client, to, name, ending, values, config, again)
    known_intervals = {name: run.data.tags.get(INTERVAL, "") for name, run in found.items()}
    texts = {trial_id(number): text for number, text in intervals(trials).items()}
    runs.set_intervals(client, to, texts, known_intervals)
    if best := [trial_id(t.number) for t in best_trials(trials)[:named]]:
        runs.set_best_trials(client, to, best)


def tell_interrupted(
    client: MlflowClient, experiment: str, sweep: str, reason: str, seconds: float
) -> bool:
    """Marks a sweep and its trials in MLflow as interrupted; returns whether it could.

    If MLflow is down for `seconds`, prints a note: a resume corrects it.
    """

    def tell() -> None:
        for run in runs.find_runs(client, experiment, sweep=sweep):
            if run.info.status == "RUNNING" and run.data.tags[KIND] != KIND_BEST:
                runs.end_run(client, run.info.run_id, Ending(EndState.INTERRUPTED, reason))

    try:
        Retry("MLflow", seconds, is_temporary)(tell)
    except Exception as error:
        print(f"note: MLflow was not told of the end: {first_line(error)}", flush=True)
        return False
    return True
