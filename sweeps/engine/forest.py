"""A sweep's sampler: draws many random points, proposes the one that a forest predicts to be best.

Extremely randomised trees predict a configuration's expected objective; where they disagree,
a point is worth trying (exploration). On the tables of learning curves it finds good configurations
sooner than TPE, which was made for objectives with less noise (benchmarks/README.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from sweeps.engine.confirmation import CONFIRMS, estimates, level, worst_value
from sweeps.engine.endings import is_broken
from sweeps.engine.journal import CONFIG
from sweeps.engine.objective import sign
from sweeps.engine.options import SamplerName
from sweeps.engine.study import Suggest, tpe

TREES = 60
LEAF = 2  # configurations in a leaf, at least
SPLIT_BY = 0.7  # share of the hyperparameters that a split considers
CANDIDATES = 300  # random points; the best is proposed


@dataclass(frozen=True)
class Candidate:
    """A point that may be tried: its values, their distributions and its configuration."""

    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]
    config: dict[str, Any]


Candidates = Callable[[int], list[Candidate]]  # from a seed


def sampler(
    name: SamplerName, seed: int, startup_trials: int, candidates: Candidates
) -> BaseSampler:
    """The sampler of one trial, by its name in the options; `candidates`: for the forest."""
    if name == "tpe":
        return tpe(seed, startup_trials)
    return Forest(seed, startup_trials, candidates)


class Forest(BaseSampler):
    """Draws the first `startup_trials` points at random, the others by a forest.

    `candidates`: makes from a seed the points to choose from.
    """

    def __init__(self, seed: int, startup_trials: int, candidates: Candidates) -> None:
        self._seed, self._startup, self._candidates = seed, startup_trials, candidates
        self._random = RandomSampler(seed)
        self._chosen: tuple[int, Candidate] | None = None  # for which trial

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        if self._chosen is None or self._chosen[0] != trial.number:
            if "fixed_params" in trial.system_attrs:
                return {}
            trials = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
            known = losses(trials)
            if len(known) < max(2, self._startup):
                return {}
            self._chosen = trial.number, self._choose(trials, known)
        return self._chosen[1].distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._chosen[1].params if search_space and self._chosen else {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:  # fmt: skip
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _choose(self, trials: list[FrozenTrial], known: dict[int, float]) -> Candidate:
        from sklearn.ensemble import ExtraTreesRegressor

        by_number = {trial.number: trial for trial in trials}
        candidates = self._candidates(self._seed)
        seen = [by_number[n].user_attrs[CONFIG] for n in known]
        x = matrix([*seen, *(candidate.config for candidate in candidates)])
        if not x.size:  # all is fixed, and only seeds differ
            return candidates[0]
        trees = ExtraTreesRegressor(
            TREES, min_samples_leaf=LEAF, max_features=SPLIT_BY, random_state=self._seed
        ).fit(x[: len(seen)], list(known.values()))
        of_trees = np.array([tree.predict(x[len(seen) :]) for tree in trees.estimators_])
        hope = np.random.default_rng(self._seed).exponential()  # differs between parallel trials
        return candidates[int(np.argmin(of_trees.mean(axis=0) - hope * of_trees.std(axis=0)))]


def random_points(suggest: Suggest, seed: int) -> list[Candidate]:
    """CANDIDATES random points of a space."""
    study = optuna.create_study(sampler=RandomSampler(seed))
    found = []
    for _ in range(CANDIDATES):
        trial = study.ask()
        config = suggest(trial)
        found.append(Candidate(trial.params, trial.distributions, config))
    return found


def losses(trials: Sequence[FrozenTrial]) -> dict[int, float]:
    """Losses of the configurations, by the number of the search's trial; less is better.

    A completed one has its expected loss; one that was stopped early at least the median of
    those, and one that diverged or collapsed the worst value of all.
    """
    less, expected = sign(trials), estimates(trials)
    found = {number: one.loss for number, one in expected.items()}
    middle = float(np.median(list(found.values()))) if found else -np.inf
    worst = max([less * worst_value(trials), *found.values()])
    for trial in trials:
        if trial.number in found or CONFIRMS in trial.user_attrs or CONFIG not in trial.user_attrs:
            continue
        if is_broken(trial):
            found[trial.number] = worst
        elif trial.state == TrialState.PRUNED and trial.intermediate_values:
            found[trial.number] = max(middle, less * level(trial))
    return found


def matrix(configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """One row per configuration, one column per number that varies, as ranks in [0, 1].

    Ranks, since a tree that splits between two values at random should not depend on a scale.
    """
    rows = [_numbers(config) for config in configs]
    names = sorted({name for row in rows for name in row} - {"seed"})
    columns = [np.unique([row.get(n, -1.0) for row in rows], return_inverse=True)[1] for n in names]
    varied = [column / column.max() for column in columns if column.max()]
    return np.array(varied).T.reshape(len(rows), len(varied))


def _numbers(config: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in config.items():
        parts = enumerate(value) if isinstance(value, (list, tuple)) else [("", value)]
        for place, part in parts:
            if isinstance(part, str):
                found[f"{name}{place}={part}"] = 1.0
            elif part is not None:
                found[f"{name}{place}"] = float(part)
    return found
