"""Who is stopped early: what the completed trials of a sweep say of the others, without Ray."""

import math

import numpy as np
import pytest
from scipy.stats import linregress

from sweeps.engine import forecast as module
from sweeps.engine.forecast import MIN_COMPLETED, SMOOTH, UNLIKELY, Forecast, chance_below

pytestmark = pytest.mark.versions


def filled(early, ends, epochs=9):
    """A forecast after trials with these values after epoch 1 and at their end."""
    forecast = Forecast(epochs, 1, 3)
    for n, (first, last) in enumerate(zip(early, ends, strict=True)):
        forecast.report(f"done{n}", 1, first)
        for epoch in range(epochs - SMOOTH + 1, epochs + 1):
            forecast.report(f"done{n}", epoch, last)
    return forecast


def test_a_trial_is_stopped_where_early_values_predict_the_end():
    early = np.linspace(0.3, 0.8, 12)
    forecast = filled(early, early - 0.1)
    assert forecast.report("good", 1, 0.35) is None
    cut = forecast.report("bad", 1, 0.75)
    assert cut is not None and cut.completed == 12 and cut.chance < UNLIKELY
    assert (cut.epoch, cut.value) == (1, 0.75)
    assert cut.target == pytest.approx(np.quantile(early - 0.1, 1 / 3))


def test_nobody_is_stopped_where_early_values_say_nothing():
    rng = np.random.default_rng(0)
    forecast = filled(rng.random(20), rng.permutation(np.linspace(0, 1, 20)))
    assert all(forecast.report(f"{v}", 1, v) is None for v in np.linspace(0, 1, 11))
    opposite = filled(np.linspace(0, 1, 12), np.linspace(1, 0, 12))
    assert opposite.report("low", 1, 0.0) is None, "a falling line is no evidence"


def test_nobody_is_stopped_before_enough_trials_have_completed():
    few = np.linspace(0.1, 0.5, MIN_COMPLETED - 1)
    assert filled(few, few).report("bad", 1, 9.0) is None
    enough = np.linspace(0.1, 0.5, MIN_COMPLETED)
    assert filled(enough, enough).report("bad", 1, 9.0) is not None


def test_nobody_is_stopped_within_the_grace_or_at_the_full_budget():
    forecast = Forecast(9, 4, 3)
    for n in range(12):
        for epoch in range(1, 10):
            forecast.report(str(n), epoch, n / 20)
    assert forecast.report("bad", 3, 9.0) is None
    assert forecast.report("bad", 4, 9.0) is not None
    assert forecast.report("bad", 9, 9.0) is None


def test_the_mean_of_the_last_values_decides():
    early = np.linspace(0.0, 1.0, 11)
    forecast = Forecast(9, 1, 3)
    for n, value in enumerate(early):
        for epoch in range(1, 10):
            forecast.report(str(n), epoch, value)
    for epoch in (1, 2):
        assert forecast.report("steady", epoch, 0.1) is None
    assert forecast.report("steady", 3, 0.5) is None, "one bad value of three"
    cut = forecast.report("rising", 3, 0.9)
    assert cut is not None and cut.value == 0.9


def test_a_value_that_is_not_finite_counts_for_nothing():
    assert filled(np.zeros(9), np.zeros(9)).report("nan", 1, math.nan) is None


def test_the_chance_is_that_of_a_regressions_prediction():
    rng = np.random.default_rng(1)
    x = rng.random(12)
    y = 2 * x + rng.normal(0, 0.1, 12)
    line = linregress(x, y)
    predicted = line.intercept + line.slope * 0.7
    assert chance_below(predicted, 0.7, x, y) == pytest.approx(0.5)
    assert chance_below(predicted - 1, 0.7, x, y) < 1e-3 < 0.999 < chance_below(9, 0.7, x, y)


def test_the_chance_is_met():
    """Of trials whose chance is said to be p, about p end below: no more are stopped wrongly."""
    rng = np.random.default_rng(2)
    said, met = [], []
    for _ in range(4000):
        x = rng.normal(size=13)
        y = x + 0.5 * rng.normal(size=13)
        said.append(chance_below(float(np.quantile(y[:12], 1 / 2)), x[12], x[:12], y[:12]))
        met.append(y[12] <= np.quantile(y[:12], 1 / 2))
    unlikely = np.array(said) < UNLIKELY
    assert unlikely.mean() > 0.1
    assert np.array(met)[unlikely].mean() < UNLIKELY


def test_equal_ends_and_missing_values():
    same = np.full(6, 0.5)
    assert chance_below(0.5, 0.9, same, same) == 1 and chance_below(0.4, 0.1, same, same) == 0
    assert chance_below(0.0, 0.9, np.array([0.1, math.nan, math.nan]), np.zeros(3)) == 1


def test_decisions_in_a_long_sweep_are_those_of_curves_read_afresh(monkeypatch):
    """And cost one step a completed trial: what is known of its curve is not computed again."""
    calls, level = [], module._level
    monkeypatch.setattr(module, "_level", lambda *given: calls.append(given) or level(*given))
    long, epochs = Forecast(50, 1, 2.0), range(1, 51)
    for n in range(30):
        for epoch in epochs:
            long.record(str(n), epoch, n / 30 + epoch / 100)
    for epoch in epochs:
        long.record("new", epoch, 0.9)
        afresh = Forecast(50, 1, 2.0, dict(long._curves), dict(long._completed))
        assert long.judge("new", epoch) == afresh.judge("new", epoch)
        if epoch == 40:
            break
    long.record("other", 7, 0.5)
    calls.clear()
    long.judge("other", 7)
    assert len(calls) == 1
