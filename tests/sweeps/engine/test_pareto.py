"""The Pareto front against its definition."""

import numpy as np

from sweeps.engine.pareto import front


def test_what_no_other_dominates_by_the_first_value():
    points = {"a": (0.5, 1.0), "b": (0.4, 2.0), "c": (0.5, 2.0), "d": (0.3, 9.0), "e": (0.6, 1.5)}
    assert front(points) == ["d", "b", "a"]


def test_equal_points_are_both_on_the_front_and_a_single_one_is():
    assert front({"b": (1.0, 1.0), "a": (1.0, 1.0)}) == ["a", "b"]
    assert front({"a": (1.0, 2.0)}) == ["a"] and front({}) == []


def test_every_point_is_on_the_front_or_dominated_by_one_that_is():
    rng = np.random.default_rng(0)
    points = {str(n): tuple(rng.integers(0, 9, 3)) for n in range(60)}
    names = front(points)
    for name, point in points.items():
        better = [o for o in names if all(np.array(points[o]) <= point) and points[o] != point]
        assert (name in names) == (not better)
