"""The search's memory: an Optuna study in a journal file, the one record that a resume trusts.

What a sweep is and which of its trials is best is defined here. Tune's table of trials, the
scheduler's forecasts and the end states in MLflow are derived from it, so a driver may be killed
between any two of its writes.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from ali.errors import UserError
from ali.files import open_regular
from sweeps.engine.confirmation import CONFIRMS, CONTROL, estimates, ranking
from sweeps.engine.endings import LAST, RETRIES, Ending, EndState, decided, first_try
from sweeps.engine.journal import CONFIG, DATA, OBJECTIVE, SPACE, WAY_ON, open_journal
from sweeps.engine.objective import MAXIMIZE
from sweeps.engine.space import PAPER_VALUES, InitialPoint

_STATE = {
    EndState.COMPLETED: TrialState.COMPLETE,
    EndState.STOPPED_EARLY: TrialState.PRUNED,
    EndState.DIVERGED: TrialState.PRUNED,  # TPE looks at no failed trial, and would ask for another
    EndState.COLLAPSED: TrialState.PRUNED,
}

Suggest = Callable[[optuna.Trial], dict[str, Any]]  # draws a point; returns its configuration


def trial_id(number: int) -> str:
    """Name of a trial in Tune, in MLflow and on disk: its number in the study."""
    return f"{number:05d}"


class Study:
    """An Optuna study in a journal file; repeating a write is harmless.

    `make_sampler`: makes one trial's sampler from a seed; None: TPE (`tpe`). `maximize`: whether
    the higher of two values is better.
    """

    def __init__(
        self,
        journal: Path,
        name: str,
        seed: int,
        startup_trials: int = 10,
        make_sampler: Callable[[int], BaseSampler] | None = None,
        maximize: bool = False,
    ) -> None:
        repair_journal(journal)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage: BaseStorage = open_journal(journal)
        _refuse_other_study(journal, name, self._storage)
        self._seed, self._maximize = seed, maximize
        self._make_sampler = make_sampler or functools.partial(tpe, startup_trials=startup_trials)
        self._study = optuna.create_study(
            study_name=name,
            storage=self._storage,
            direction="maximize" if maximize else "minimize",
            pruner=optuna.pruners.NopPruner(),  # the scheduler alone stops trials
            load_if_exists=True,
        )

    @property
    def records(self) -> optuna.Study:
        """The study itself, to read."""
        return self._study

    def set_data(self, fingerprint: str) -> None:
        """Records, once, the data that all trials have."""
        self._record(DATA, fingerprint)

    def set_search(self, space: dict[str, Any], objective: str) -> None:
        """Records, once, what trials are drawn from, and what they are compared by."""
        self._record(SPACE, space)
        self._record(OBJECTIVE, objective)

    def _record(self, key: str, value: Any) -> None:
        if key not in self._study.user_attrs:
            self._study.set_user_attr(key, value)

    def describe(self, objective: str, **attributes: str | None) -> None:
        """Records, where they differ, the objective's name and more that people want to see."""
        if self._study.metric_names != [objective]:
            self._study.set_metric_names([objective])
        for name, value in attributes.items():
            if value is not None and self._study.user_attrs.get(name) != value:
                self._study.set_user_attr(name, value)

    def trials(self) -> list[FrozenTrial]:
        """All trials by number: takes longer the more there are; see `trial`."""
        return self._study.get_trials(deepcopy=False)

    def trial(self, number: int) -> FrozenTrial:
        """One trial, as fast as if there were no others."""
        study = self._study._study_id
        id_ = self._storage.get_trial_id_from_study_id_trial_number(study, number)
        return self._storage.get_trial(id_)

    def ask(self, suggest: Suggest) -> FrozenTrial:
        """A new trial whose user attribute CONFIG holds what `suggest` returned."""
        trials = self.trials()
        waiting = (t.number for t in trials if t.state == TrialState.WAITING)
        self._seed_sampler(next(waiting, len(trials)))  # Optuna takes the first that waits
        return self._configure(self._study.ask(), suggest)

    def complete_ask(self, trial: FrozenTrial, suggest: Suggest) -> FrozenTrial:
        """Repeats an `ask` that a kill cut short: its point is the same, whatever of it was drawn.

        All is drawn again, since a sampler's next draw depends on those before.
        """
        if CONFIG in trial.user_attrs:
            return trial
        self._seed_sampler(trial.number)
        begun = optuna.Trial(self._study, trial._trial_id)
        undrawn = copy.copy(begun._cached_frozen_trial)  # private: Optuna has no public way
        undrawn.params, undrawn.distributions = {}, {}
        begun._cached_frozen_trial = undrawn
        return self._configure(begun, suggest)

    def _configure(self, trial: optuna.Trial, suggest: Suggest) -> FrozenTrial:
        config = suggest(trial)
        if RETRIES in trial.user_attrs:
            config = self.trial(trial.user_attrs[RETRIES]).user_attrs[CONFIG]
        if self._maximize:
            trial.set_user_attr(MAXIMIZE, True)
        trial.set_user_attr(CONFIG, config)
        return self._storage.get_trial(trial._trial_id)

    def enqueue(self, point: InitialPoint, control: bool = False) -> None:
        """Enqueues a known point before any that the search draws.

        `control`: it is the paper's own, with which a confirmation compares the best.
        """
        attributes: dict[str, Any] = {PAPER_VALUES: list(point.paper_values)}
        if control:
            attributes[CONTROL] = True
        self._study.enqueue_trial(point.params, user_attrs=attributes, skip_if_exists=True)

    def enqueue_again(self, number: int) -> None:
        """Enqueues a trial's configuration once more, with the next trial's seed."""
        self._enqueue_same(self.trial(number), {CONFIRMS: number})

    def retry(self, number: int) -> None:
        """Enqueues a trial that lost its workers again: same point, seed and checkpoints."""
        trial = self.trial(number)
        confirms = {k: v for k, v in trial.user_attrs.items() if k == CONFIRMS}
        self._enqueue_same(trial, {RETRIES: first_try(trial), **confirms})

    def _enqueue_same(self, trial: FrozenTrial, attributes: dict[str, Any]) -> None:
        paper_values = trial.user_attrs.get(PAPER_VALUES, [])
        attributes = {**attributes, PAPER_VALUES: paper_values}
        self._study.enqueue_trial(trial.params, user_attrs=attributes)

    def report(self, number: int, epoch: int, value: float) -> None:
        """Records a trial's value after an epoch, once; non-finite values are not recorded."""
        trial = self.trial(number)
        if trial.state.is_finished() or epoch in trial.intermediate_values:
            return
        if math.isfinite(value):
            self._storage.set_trial_intermediate_value(trial._trial_id, epoch, value)

    def decide(self, number: int, ending: Ending, last: tuple[int, float] | None = None) -> None:
        """Records how a trial is about to end, for a driver that is killed before it is told.

        `last`: the epoch and value that it was decided by, if they are not reported yet.
        """
        trial = self.trial(number)
        if trial.state.is_finished() or decided(trial) == ending:
            return
        if last is not None:
            self._storage.set_trial_user_attr(trial._trial_id, LAST, [*last])
        for key, text in reversed(ending.to_result().items()):  # the state last: it counts
            self._storage.set_trial_user_attr(trial._trial_id, key, text)

    def tell(self, number: int, ending: Ending, value: float | None) -> None:
        """Ends a trial: COMPLETE with its value, PRUNED if stopped or diverged before, or FAIL.

        FAIL says nothing of the configuration: a lost worker, a bug, too little memory.
        """
        trial = self.trial(number)
        if trial.state.is_finished():
            return
        self.decide(number, ending)
        state = _STATE.get(ending.state, TrialState.FAIL)
        values = [value] if state == TrialState.COMPLETE and value is not None else None
        self._study.tell(number, values, state)

    def _seed_sampler(self, number: int) -> None:
        # Reseeded by each trial's number, so that an interrupted search continues as it would have,
        # and one with a concurrency of 1 can be repeated.
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        self._study.sampler = self._make_sampler(seed)


def tpe(seed: int, startup_trials: int) -> BaseSampler:
    """TPE over configurations; the first `startup_trials` points are random."""
    inner = optuna.samplers.TPESampler(
        seed=seed,
        n_startup_trials=startup_trials,
        multivariate=True,
        group=True,  # the space is conditional
        constant_liar=True,  # trials run side by side
    )
    return ByConfiguration(inner)


class ByConfiguration(BaseSampler):
    """Shows another sampler each configuration once, at the objective to expect of it.

    A configuration that is trained with several seeds is several trials. TPE would take them for as
    many observations, and draw ever more points around the few that are repeated.
    """

    def __init__(self, inner: BaseSampler) -> None:
        self._inner = inner
        self._seen: tuple[int, optuna.Study] | None = None  # for which trial, and what it is shown

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._inner.infer_relative_search_space(self._shown(study, trial), trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._inner.sample_relative(self._shown(study, trial), trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:  # fmt: skip
        shown = self._shown(study, trial)
        return self._inner.sample_independent(shown, trial, param_name, param_distribution)

    def _shown(self, study: optuna.Study, trial: FrozenTrial) -> optuna.Study:
        if self._seen is None or self._seen[0] != trial.number:
            trials = study.get_trials(deepcopy=False)
            self._seen = trial.number, with_trials(study, configurations(trials))
        return self._seen[1]


def configurations(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that confirm no other; completed ones get their expected objective."""
    values, shown = estimates(trials), []
    for trial in trials:
        if CONFIRMS not in trial.user_attrs:
            if trial.state == TrialState.COMPLETE:
                trial = copy.copy(trial)
                trial.value = values[trial.number].mean
            shown.append(trial)
    return shown


def with_trials(study: optuna.Study, trials: list[FrozenTrial]) -> optuna.Study:
    """A view of the study that shows only these trials; a sampler's writes reach the study."""

    def get_trials(
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        return [t for t in trials if states is None or t.state in states]

    shown = copy.copy(study)
    if not hasattr(shown, "_get_trials"):  # private: Optuna has no public way
        raise AttributeError("this version of Optuna has no Study._get_trials")
    shown._get_trials = shown.get_trials = get_trials  # type: ignore[method-assign]
    return shown


def best_trials(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The search's trials that completed their full budget, best first: the definition of "best".

    Ranked by their configurations' expected objective (`confirmation.estimates`): without fresh
    seeds that is the order of the means over the last fifth of their curves.
    """
    by_number = {trial.number: trial for trial in trials}
    return [by_number[number] for number in ranking(list(by_number.values()))]


def confirms_of(trial: FrozenTrial) -> str | None:
    """Id of the trial whose configuration this one repeats; None: one of the search's own."""
    number = trial.user_attrs.get(CONFIRMS)
    return None if number is None else trial_id(number)


def read_study(journal: Path, name: str) -> optuna.Study:
    """A sweep's study, read-only: a driver may be writing it, so nothing is repaired or added.

    Raises UserError if the journal is empty, damaged, or of another sweep.
    """
    if (study := find_study(journal, name)) is None:
        raise UserError(f"{journal} is empty: {WAY_ON}")
    return study


def find_study(journal: Path, name: str) -> optuna.Study | None:
    """As `read_study`; None if there is no journal, or nothing in it yet."""
    if not journal.exists():
        return None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_journal(journal)
    _refuse_other_study(journal, name, storage)
    known = storage.get_all_studies()
    return optuna.load_study(study_name=name, storage=storage) if known else None


def _refuse_other_study(journal: Path, name: str, storage: BaseStorage) -> None:
    known = [study.study_name for study in storage.get_all_studies()]
    if known and name not in known:
        raise UserError(f"{journal} is of sweep {known[0]!r}: give its folder that name again")


def repair_journal(journal: Path) -> None:
    """Removes what a killed driver may leave: its lock and half of a last line.

    Only called while this process holds the sweep's own lock.
    """
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    if not journal.exists():
        return
    with open_regular(journal, "rb+") as file:
        data = file.read()
        if data and not data.endswith(b"\n"):
            file.truncate(data.rfind(b"\n") + 1)
