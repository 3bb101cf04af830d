"""What several full trainings come to, as text and as metrics."""

import math

import pytest

from ali.config import Config
from ali.errors import NonFiniteError
from sweeps.engine.final_test import Outcome, best_of, over_seeds, seeds_table


def outcome(seed, value, error):
    found = {"val_error": value, "test_error_mean": error, "test_error_std": 0.9}
    return seed, Outcome(Config(seed=seed), f"run{seed}", 5, found)


def test_mean_and_std_over_seeds():
    found = [outcome(1, 0.3, 0.5)[1].found, outcome(2, 0.5, 0.7)[1].found]
    summary = over_seeds(found)
    assert summary["seeds"] == 2
    assert summary["test_error_mean_over_seeds"] == pytest.approx(0.6)
    assert summary["test_error_mean_std_over_seeds"] == pytest.approx(0.02**0.5)
    assert not any("test_error_std" in name for name in summary), "over SVMs, not over seeds"


def test_a_row_a_seed_and_the_best_by_validation_marked():
    diverged = (3, NonFiniteError(7, ("d_loss",)))
    lines = seeds_table([outcome(1, 0.5, 0.4), outcome(2, 0.3, 0.6), diverged], "val_error")
    (best,) = [line for line in lines.splitlines() if "best by validation" in line]
    assert best.split()[1] == "2" and "0.6000" in best
    assert "diverged" in lines and "0.4000 ± 0.1414" in lines and "0.5000 ± 0.1414" in lines


def test_one_seed_has_no_standard_deviation():
    """It was 0.0000, as if the error were known exactly."""
    one, diverged = outcome(1, 0.3, 0.5), (2, NonFiniteError(7, ("d_loss",)))
    assert math.isnan(over_seeds([one[1].found])["test_error_mean_std_over_seeds"])
    lines = seeds_table([one, diverged], "val_error")
    assert "0.5000" in lines and "±" not in lines
    one_value = seeds_table([one, outcome(2, math.nan, 0.7)], "val_error")
    assert one_value.count("0.3000") == 2 and "0.3000 ±" not in one_value


def test_a_seed_without_a_value_is_never_the_best():
    """A formula as log(0) has none."""
    trained = [outcome(1, math.nan, 0.4), outcome(2, 0.2, 0.6), outcome(3, 0.1, 0.5)]
    ended = [found for _, found in trained]
    assert best_of(ended, "val_error").config.seed == 3
    assert best_of(ended, "val_error", maximize=True).config.seed == 2
    lines = seeds_table(trained, "val_error")
    assert "3 (best by validation)" in lines and "0.1500 ± 0.0707" in lines
