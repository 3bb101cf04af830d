"""ASHA's decisions, without Ray."""

import math

import numpy as np
import pytest
from ray.tune.schedulers.async_hyperband import _Bracket

from sweeps.engine.rungs import Cut, Rungs

pytestmark = pytest.mark.versions


def test_rungs_are_eta_apart_up_to_the_full_budget():
    assert list(Rungs(27, 1, 3)._values) == [1, 3, 9, 27]
    assert list(Rungs(10, 4, 2.5)._values) == [4, 10]
    assert list(Rungs(5, 8, 3)._values) == [5], "a grace of more than the budget"


def test_the_worse_is_cut_with_the_reason():
    rungs = Rungs(9, 1, 3)
    assert rungs.report("a", 1, 0.5) is None
    assert rungs.report("b", 1, 0.4) is None
    # The cut is of the others: the best third of 0.4 and 0.5 begins at 0.4333.
    assert rungs.report("c", 1, 0.6) == Cut(1, 0.6, pytest.approx(0.4333, abs=1e-4), 3)
    assert rungs.report("d", 1, 0.41) is None


def test_nobody_is_cut_before_eta_trials_have_reached_a_rung():
    rungs = Rungs(9, 1, 3)
    assert [rungs.report(name, 1, value) for name, value in (("a", 0.1), ("b", 0.9))] == [None] * 2
    assert rungs.report("c", 1, 0.9) is not None


def test_a_trial_is_judged_once_a_rung_by_its_first_value_there():
    rungs = Rungs(27, 1, 3)
    for name in "abc":
        rungs.report(name, 4, 0.2)  # evaluated every 4 epochs: past the rung of 3
    assert rungs.report("d", 4, 0.3) is not None
    rungs = Rungs(27, 1, 3)
    for name in "abcd":
        rungs.report(name, 4, 0.2)
    assert rungs.report("a", 5, 0.9) is None, "it has been judged at 3, and 1 is behind it"


def test_the_full_budget_is_no_cut_and_a_nan_counts_for_nothing():
    rungs = Rungs(9, 1, 3)
    for name in "abc":
        rungs.report(name, 9, 0.1)
    assert rungs.report("d", 9, 0.9) is None
    assert rungs.report("e", 1, math.nan) is None and not rungs._values[1]


def test_decisions_are_those_of_rays_asha_from_eta_trials_on():
    rng, ours, rays = np.random.default_rng(0), Rungs(27, 1, 3), _Bracket(1, 27, 3, 0)
    stopped: set[str] = set()
    for epoch in (1, 3, 9):
        for n in range(40):
            name, value = str(n), float(rng.random())
            if name in stopped:
                continue

            class Trial:
                trial_id = name

            theirs = rays.on_result(Trial(), epoch, -value) == "STOP"
            mine = ours.report(name, epoch, value) is not None
            if len(ours._values[epoch]) >= 3:
                assert mine == theirs
            if mine or theirs:
                stopped.add(name)
    assert 10 < len(stopped) < 40
