"""The forest that draws a sweep's points: it finds what is good and keeps away from what breaks."""

import math
from functools import partial

import numpy as np
import pytest

from ali.config import Config
from sweeps.engine.endings import Ending, EndState
from sweeps.engine.forest import Forest, losses, matrix, random_points
from sweeps.engine.space import Space, suggest
from sweeps.engine.study import Study

pytestmark = pytest.mark.versions
STARTUP = 12
COMPLETED = Ending(EndState.COMPLETED, "")
STOPPED = Ending(EndState.STOPPED_EARLY, "")
DIVERGED = Ending(EndState.DIVERGED, "")


point = partial(suggest, space=Space(), base=Config())


def studied(folder, seed=1):
    """An empty study whose points a forest draws."""
    folder.mkdir(exist_ok=True)
    make = partial(Forest, startup_trials=STARTUP, candidates=partial(random_points, point))
    return Study(folder / "journal", "s", seed, make_sampler=make)


def rate(trial):
    """How far a trial's rate is from the best, 2e-4: decades."""
    return abs(math.log10(trial.params["lr_d"] / 2e-4))


def test_it_draws_where_trials_are_good(tmp_path):
    first, later = [], []
    for seed in range(2):
        study, rng = studied(tmp_path / str(seed), seed), np.random.default_rng(seed)
        for number in range(2 * STARTUP):
            trial = study.ask(point)
            (later if number >= STARTUP else first).append(rate(trial))
            study.tell(trial.number, COMPLETED, rate(trial) + 0.1 * rng.normal())
    assert np.mean(later) < 0.7 * np.mean(first)


def test_it_keeps_away_from_where_trials_diverge(tmp_path):
    study, bad = studied(tmp_path), 0
    for number in range(2 * STARTUP):
        trial = study.ask(point)
        diverged = trial.params["lr_d"] > 2e-4  # half of the points
        study.report(trial.number, 1, 0.8)
        study.tell(trial.number, DIVERGED if diverged else COMPLETED, None if diverged else 0.5)
        bad += diverged and number >= STARTUP
    assert bad <= STARTUP / 4


def test_a_point_is_drawn_again_after_a_kill(tmp_path):
    points = []
    for folder in (tmp_path / "one", tmp_path / "other"):
        study = studied(folder)
        for _ in range(STARTUP + 1):
            trial = study.ask(point)
            study.tell(trial.number, COMPLETED, rate(trial))
        points.append(studied(folder).ask(point).params)
    assert points[0] == points[1]


def test_a_space_in_which_all_is_fixed(tmp_path):
    study = Study(
        tmp_path / "journal", "s", 1,
        make_sampler=partial(Forest, startup_trials=2, candidates=partial(random_points, fixed)),
    )  # fmt: skip
    for _ in range(4):
        study.tell(study.ask(fixed).number, COMPLETED, 0.5)
    assert [trial.params for trial in study.trials()] == [{}] * 4


def fixed(trial):
    return {"lr_d": 1e-4}


def test_what_its_configurations_are_judged_by(tmp_path):
    study = studied(tmp_path)
    told = [(COMPLETED, 0.2), (COMPLETED, 0.6), (COMPLETED, 0.4), (STOPPED, 0.3), (STOPPED, 0.9)]
    for ending, value in [*told, (DIVERGED, None), (Ending(EndState.FAILED, "lost"), None)]:
        trial = study.ask(point)
        if value is not None:
            study.report(trial.number, 1, value)
        study.tell(trial.number, ending, value)
    study.ask(point)
    found = losses(study.trials())
    assert sorted(found) == [0, 1, 2, 3, 4, 5], "a lost worker and a running trial say nothing"
    assert found[0] < found[2] < found[1]
    assert found[3] == found[2], "stopped: as bad as half of the completed, at least"
    assert found[4] == 0.9 and found[5] >= 0.6


def test_columns_are_what_varies_as_ranks():
    configs = [
        {"seed": 1, "lr": 1e-4, "bn": [True, False], "data": "svhn", "slope": None, "model": "a"},
        {"seed": 2, "lr": 1e-1, "bn": [True, True], "data": "svhn", "slope": 0.2, "model": "b"},
        {"seed": 3, "lr": 1e-2, "bn": [True, True], "data": "svhn", "slope": 0.1, "model": "a"},
    ]
    # bn1, lr, model=a, model=b, slope: those that are the same, and the seed, are left out
    assert matrix(configs).tolist() == [
        [0, 0, 1, 0, 0],
        [1, 1, 0, 1, 1],
        [1, 0.5, 1, 0, 0.5],
    ]
    assert matrix(configs[:1]).shape == (1, 0)
