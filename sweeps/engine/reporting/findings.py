"""What a sweep found, as sentences and tables: `text` prints them, `page` makes HTML of them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import mean
from typing import TYPE_CHECKING, Any

from ali.metrics import (
    COLLAPSED,
    RAW_PIXEL_ERROR,
    SAMPLE_DISTANCE,
    UNTRAINED_BN_ERROR,
    UNTRAINED_ERROR,
    VAL_ERROR,
)
from ali.output import without_password
from sweeps.engine.confirmation import (
    Confirmed,
    confirmed,
    estimates,
)
from sweeps.engine.estimate import Estimate
from sweeps.engine.journal import ALI, EXPERIMENT
from sweeps.engine.objective import Objective
from sweeps.engine.options import Options
from sweeps.engine.reporting.evidence import (
    announcement,
    control_of,
    has_collapsed,
    importance_of,
)
from sweeps.engine.results import TrialResult, ranked
from sweeps.engine.scripts import script_command
from sweeps.engine.study import trial_id
from sweeps.engine.tracking import runs
from sweeps.engine.tracking.client import is_database
from sweeps.engine.tracking.schema import (
    KIND_TRIAL,
    TRIAL,
)
from sweeps.engine.tracking.view import view_path

if TYPE_CHECKING:
    import optuna
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from optuna.trial import FrozenTrial

    from sweeps.engine.importance import Importance

BEST_SHOWN = 10
EARLIER = "score = val_error + 0.2 * min(sample_distance, 1)"  # docs/space.md says why
COLLAPSED_WORDS, UNTRAINED = "which has collapsed", "which is no better than untrained"
NOT_ENDED = "not ended"
Runs = dict[str, "Run"]  # of trials, by id


@dataclass(frozen=True)
class Findings:
    """A sweep's study and its runs in MLflow, at one moment."""

    options: Options
    frozen: Sequence[FrozenTrial]
    runs: Sequence[Run]  # of its trials
    parent: Run | None
    experiment: str = "0"  # in MLflow
    attributes: Mapping[str, Any] = field(default_factory=dict)  # of the study

    @cached_property
    def by_id(self) -> Runs:
        return {run.data.tags[TRIAL]: run for run in self.runs}

    @cached_property
    def objective(self) -> str:
        return runs.objective_of(self.parent) if self.parent else "objective"

    @cached_property
    def parts(self) -> list[str]:
        """The metrics that the objective is computed from, if it is arithmetic of several."""
        formula = runs.formula_of(self.parent) if self.parent else None
        return sorted(Objective(self.objective, formula=formula).metrics) if formula else []

    @cached_property
    def sign(self) -> int:
        """What the objective is multiplied by so that less is better: 1, or −1 to maximize."""
        return -1 if self.parent and runs.direction_of(self.parent) == "maximize" else 1

    @cached_property
    def trials(self) -> list[TrialResult]:
        """All that have begun, the best first."""
        return [trial for trial in ranked(self.frozen) if trial.config]

    @cached_property
    def complete(self) -> list[TrialResult]:
        """The search's trials that reached their full budget, the best first."""
        return [trial for trial in self.trials if trial.complete and trial.confirms is None]

    @cached_property
    def again(self) -> list[Confirmed]:
        """Configurations with runs of fresh seeds, the best expected first."""
        return [one for one in confirmed(self.frozen) if one.values]

    @cached_property
    def estimates(self) -> dict[int, Estimate]:
        return estimates(self.frozen)

    @cached_property
    def control(self) -> int | None:
        return control_of(self.frozen)

    @cached_property
    def importance(self) -> Importance:
        return importance_of(self.frozen)

    @cached_property
    def doubts(self) -> list[str]:
        """Reasons to doubt the best trial: words that follow its name."""
        if not self.complete or self.parent is None:
            return []
        best = self.complete[0]
        return _doubts(best, self.expected_error(best), self.by_id, self.parent)

    @cached_property
    def sound(self) -> TrialResult | None:
        """If the best trial's samples have collapsed, the best one whose samples have not."""
        if COLLAPSED_WORDS not in self.doubts:
            return None
        known = (trial for trial in self.complete if trial.trial_id in self.by_id)
        return next((one for one in known if not has_collapsed(self.by_id[one.trial_id])), None)

    @property
    def of_ali(self) -> bool:
        """Whether its trials are ALI's, which the project's other commands train, too."""
        return self.attributes.get(EXPERIMENT, ALI) == ALI

    @property
    def next_commands(self) -> list[tuple[str, str]]:
        doubts = self.doubts if self.complete and self.of_ali else None
        return list(next_commands(self.options, doubts, self.experiment, self.sound))

    def expected(self, trial: TrialResult) -> Estimate:
        """The expected objective of the configuration of a trial in `complete`."""
        return self.estimates[int(trial.trial_id)]

    def metrics_of(self, trial: TrialResult) -> Mapping[str, float]:
        """Its last metrics in MLflow."""
        run = self.by_id.get(trial.trial_id)
        return run.data.metrics if run else {}

    def errors(self, trial: TrialResult) -> list[float]:
        """val_error of a completed trial and of those that repeat its configuration, if the
        objective is computed from it."""
        if VAL_ERROR not in self.parts:
            return []
        again = [t for t in self.trials if t.confirms == trial.trial_id and t.complete]
        names = [one.trial_id for one in (trial, *again)]
        known = [self.by_id[name].data.metrics for name in names if name in self.by_id]
        return [metrics[VAL_ERROR] for metrics in known if VAL_ERROR in metrics]

    def expected_error(self, trial: TrialResult) -> float:
        """What an untrained encoder's val_error is compared with: the expected objective, or the
        mean of the errors so far where the objective is computed from them."""
        errors = self.errors(trial)
        return mean(errors) if errors else self.expected(trial).mean


def find(options: Options, study: optuna.Study, client: MlflowClient, experiment: str) -> Findings:
    """Reads a sweep's study and its runs."""
    trials, attributes = study.get_trials(deepcopy=False), study.user_attrs
    found = runs.find_runs(client, experiment, sweep=options.name, kind=KIND_TRIAL)
    parent = runs.find_sweep(client, experiment, options.name)
    return Findings(options, trials, found, parent, experiment, attributes)


def verdict(found: Findings) -> list[str]:
    """The result of a sweep in a few sentences, the most important one first."""
    if not found.complete:
        waiting, begun = sum(trial.ending is None for trial in found.trials), len(found.trials)
        none = f"No trial has reached its full budget of {found.options.epochs} epochs"
        if begun and not waiting:
            return [f"{none} with a value: all {begun} ended otherwise; why is said below."]
        return [f"{none} yet: of {begun} that have begun, {waiting} have not ended."]
    best, said = found.complete[0], []
    values, expected = runs_of(best, found.again), found.expected(best).mean
    errors = found.errors(best)
    if UNTRAINED in found.doubts and found.parent:
        shown = (errors, mean(errors)) if errors else (values, expected)
        earlier = found.objective == VAL_ERROR and SAMPLE_DISTANCE in found.metrics_of(best)
        said.append(_too_short(found.options, *shown, found.parent, earlier))
    if found.again:
        known, ahead = found.estimates, best.trial_id
        said.append(announcement(found.again, known, found.control, ahead).strip())
    else:
        said.append(
            f"Best: trial {best.trial_id}, {found.objective} {best.value:.4f} with one seed; "
            f"expect {expected:.4f} of another."
        )
    if errors and UNTRAINED not in found.doubts:
        seeds = f"on average over {len(errors)} seeds" if errors[1:] else "with one seed"
        said.append(f"Its {VAL_ERROR} is {mean(errors):.4f} {seeds}.")
    if COLLAPSED_WORDS in found.doubts:
        said.append(f"The samples of trial {best.trial_id} have collapsed: look at them first.")
    if found.sound:
        expected = found.expected(found.sound).mean
        said.append(
            f"The best trial whose samples have not is {found.sound.trial_id}; expect "
            f"{expected:.4f} of its configuration."
        )
    return said


def untrained_error(parent: Run) -> float:
    """A sweep's lowest val_error without training; infinity if it has another objective."""
    known = parent.data.metrics
    return min(known.get(name, math.inf) for name in (UNTRAINED_ERROR, UNTRAINED_BN_ERROR))


def runs_of(trial: TrialResult, again: Sequence[Confirmed]) -> list[float]:
    """The objective of a completed trial and of those that repeat its configuration."""
    assert trial.value is not None
    return [
        trial.value,
        *next((c.values for c in again if trial_id(c.number) == trial.trial_id), ()),
    ]


def _doubts(best: TrialResult, expected: float, by_id: Runs, parent: Run) -> list[str]:
    """Reasons to doubt the best trial; `expected`: its configuration's expected objective."""
    run = by_id.get(best.trial_id)
    collapsed = [COLLAPSED_WORDS] if run and has_collapsed(run) else []
    return collapsed + ([UNTRAINED] if expected >= untrained_error(parent) else [])


def _too_short(
    options: Options, values: Sequence[float], expected: float, parent: Run, earlier: bool = False
) -> str:
    """`earlier`: whether to name an objective that tells good configurations earlier."""
    shown, expect = f"{mean(values):.4f}", f"{expected:.4f}"
    has = f"{shown} on average over {len(values)} seeds" if len(values) > 1 else shown
    said = f"the best trial, {has}, is"
    if expect != shown:
        luck = ", in part by luck" * (expected > mean(values))
        said = f"the best trial has {has}{luck}; expect {expect} of another seed, which is"
    return (
        f"{options.epochs} epochs are too short: {said} no better than an untrained encoder, "
        f"{untrained_error(parent):.4f}. The ranking says little; start a sweep with more "
        "--epochs" + f", or with --objective {shlex.quote(EARLIER)}" * earlier + "."
    )


def next_commands(
    options: Options,
    doubts: Sequence[str] | None,
    experiment: str,
    sound: TrialResult | None = None,
) -> Iterator[tuple[str, str]]:
    """What to do next, and the command; `doubts`: of the best trial, None if there is none
    that best.py can train; `sound`: the best trial that has not collapsed, if the best has."""
    uri, local = without_password(options.uri), is_database(options.uri)
    server = "http://127.0.0.1:5000" if local else uri
    link = f"{server}/{view_path(experiment, options.name)}"
    yield "compare the runs", script_command("ui.py", *options.arguments()) if local else link
    if local:
        yield "then open", link
    if doubts is not None:
        best = ", ".join(["train the best", *doubts])
        yield best, script_command("best.py", *options.arguments())
        if sound:
            chosen = "--trial", sound.trial_id
            command = script_command("best.py", *options.arguments(), *chosen)
            yield "train the best that has not", command


def notes(found: Findings) -> Iterator[str]:
    """Lines that say how far the best trials' objective is to be trusted."""
    ids, by_id = [trial.trial_id for trial in found.complete[:BEST_SHOWN]], found.by_id
    if alike := [name for name in ids if name in by_id and has_collapsed(by_id[name])]:
        below = " or ".join(f"{name} below {least}" for name, least in COLLAPSED.items())
        yield f"samples have collapsed ({below}) in {', '.join(alike)}"
    known = found.parent.data.metrics if found.parent else {}
    if UNTRAINED_BN_ERROR in known:
        yield (
            f"without training, the same SVMs: {known[RAW_PIXEL_ERROR]:.4f} on raw pixels, "
            f"{known[UNTRAINED_ERROR]:.4f} on an untrained encoder, "
            f"{known[UNTRAINED_BN_ERROR]:.4f} once its batch norm has seen the data"
        )
    elif RAW_PIXEL_ERROR in known:  # a model that classifies itself
        yield f"SVMs on raw pixels with as many labels: {known[RAW_PIXEL_ERROR]:.4f}"
