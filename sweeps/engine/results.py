"""What a sweep has found so far, read from its study: for reports, `best.py` and your own code."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ali.errors import UserError
from sweeps.engine.confirmation import worst_value
from sweeps.engine.endings import Ending, ending_of, is_broken
from sweeps.engine.options import JOURNAL, Location
from sweeps.engine.saved_options import refuse_missing

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class TrialResult:
    """One trial of a sweep.

    Attributes:
        trial_id: its name in Tune, in MLflow and on disk.
        config: its whole configuration, as plain JSON types (`ali.config.Config.from_dict`).
        value: the objective after its last epoch; None if it has not been evaluated.
        values: the objective by epoch.
        ending: how it ended; None while it has not.
        complete: whether it reached its full budget.
        confirms: the trial whose configuration it repeats with another seed; None: one of the
            search's own.
    """

    trial_id: str
    config: dict[str, Any]
    value: float | None
    values: dict[int, float]
    ending: Ending | None
    complete: bool
    confirms: str | None = None


def results(location: Location) -> list[TrialResult]:
    """All trials of a sweep: the best first (`study.best_trials`), then the others by number.

    Raises UserError if there is no such sweep at this location. Only reads: a sweep may be running.
    """
    return ranked(load_study(location).get_trials(deepcopy=False))


def ranked(trials: Sequence[FrozenTrial]) -> list[TrialResult]:
    """As `results`, of a study's trials."""
    from sweeps.engine.study import best_trials

    best = best_trials(trials)
    chosen = {trial.number for trial in best}
    others = [trial for trial in trials if trial.number not in chosen]
    return [_result(trial) for trial in [*best, *others]]


def valued(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials with a value: a stopped one has its last, a diverged one the worst of all."""
    ended = [t for t in trials if t.state.name in ("COMPLETE", "PRUNED")]
    worst, found = worst_value(ended), []
    for trial in ended:
        values, diverged = trial.intermediate_values, is_broken(trial)
        if values or diverged:
            found.append(copy.copy(trial))
            found[-1].value = worst if diverged else values[max(values)]
    return found


def load_study(location: Location) -> optuna.Study:
    """A sweep's study, to read. Raises UserError if it is not at this location, or damaged."""
    from sweeps.engine.study import read_study

    journal = location.folder / JOURNAL
    if not journal.exists():
        refuse_missing(location)
        raise UserError(
            f"there is no sweep {location.name!r} in {location.output_dir} ({journal} is missing): "
            "give its --name and --output-dir"
        )
    return read_study(journal, location.name)


def _result(trial: FrozenTrial) -> TrialResult:
    from sweeps.engine.study import CONFIG, confirms_of, trial_id

    complete = trial.state.name == "COMPLETE" and trial.value is not None
    values = dict(sorted(trial.intermediate_values.items()))
    last = values[max(values)] if values else None
    return TrialResult(
        trial_id(trial.number),
        trial.user_attrs.get(CONFIG, {}),
        trial.value if complete else last,
        values,
        ending_of(trial),
        complete,
        confirms_of(trial),
    )
