"""What to expect of a configuration: against numerical integration, and over simulated sweeps."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm, t

from sweeps.engine import estimate as module
from sweeps.engine.estimate import CENTRES, KNOWN_AFTER, LUCK, SCALES, Estimate, estimate

RUNS = {3: [0.31, 0.36, 0.28], 5: [0.52], 8: [0.61, 0.55], 9: [0.75], 11: [0.7]}


def test_interval_and_probability():
    a, b = Estimate(0.4, 0.1, 2), Estimate(0.8, 0.1, 2)
    low, high = a.interval
    assert (low + high) / 2 == pytest.approx(0.4)
    assert high - low == pytest.approx(2 * 4.303 * 0.1, rel=1e-3)
    assert a.beats(b) == pytest.approx(0.947, abs=0.001) == 1 - b.beats(a)
    unknown = Estimate(0.1, np.nan, 0)
    assert unknown.beats(unknown) == 0.5 and unknown.interval == (-np.inf, np.inf)
    exact = Estimate(0.4, 0.0, 2), Estimate(0.5, 0.0, 2)
    assert exact[0].beats(exact[1]) == 1 and exact[0].beats(exact[0]) == 0.5


def test_against_numerical_integration():
    means = {key: np.mean(values) for key, values in RUNS.items()}
    low, high = np.quantile([values[0] for values in RUNS.values()], [0.25, 0.75])
    squares = sum(sum((v - means[key]) ** 2 for v in values) for key, values in RUNS.items())
    variance = (KNOWN_AFTER * LUCK * ((high - low) / 1.349) ** 2 + squares) / (KNOWN_AFTER + 3)
    low, high = np.quantile([*means.values()], [0.25, 0.75])
    evidence, moments = [], {key: [] for key in RUNS}
    for centre in np.quantile([*means.values()], CENTRES):
        for scale in SCALES * (high - low) / 1.349:
            product = 1.0
            for key, values in RUNS.items():
                std = (variance / len(values)) ** 0.5

                def density(x, k, mean=means[key], std=std, centre=centre, scale=scale):
                    return x**k * t.pdf(x, 2, centre, scale) * norm.pdf(x, mean, std)

                span = {"points": (centre, means[key]), "limit": 200}
                zero, one, two = (quad(density, -1, 2.5, args=(k,), **span)[0] for k in range(3))
                product *= zero
                moments[key].append((one / zero, two / zero))
            evidence.append(product)
    found = estimate(RUNS)
    for key, its in moments.items():
        first, second = np.average(its, axis=0, weights=evidence)
        assert found[key].mean == pytest.approx(first, abs=3e-3)
        assert found[key].std == pytest.approx((second - first**2) ** 0.5, rel=0.05)
        assert found[key].freedom == 3


def test_units_do_not_matter():
    found = estimate(RUNS)
    other = estimate({key: [7 - 40 * v for v in values] for key, values in RUNS.items()}, True)
    for key, one in found.items():
        assert other[key].mean == pytest.approx(7 - 40 * one.mean)
        assert other[key].std == pytest.approx(40 * one.std)
        assert other[key].loss == -other[key].mean and one.loss == one.mean


@pytest.mark.parametrize("better", [0.4, 5.0, 1e4])
def test_one_far_ahead_of_all_others_is_hardly_drawn_back(better):
    """By 4, 50 and 10⁵ standard deviations of the others, with three runs."""
    rng = np.random.default_rng(0)
    runs = {i: [v] for i, v in enumerate(rng.normal(0.8, 0.1, 30))}
    runs[99] = [0.8 - better - 0.05, 0.8 - better, 0.8 - better + 0.05]
    found = estimate(runs)
    assert found[99].mean == pytest.approx(0.8 - better, abs=0.03)
    assert 0.02 < found[99].std < 0.08
    assert found[0].mean == pytest.approx(0.8, abs=0.1)


@pytest.mark.parametrize("draw", ["normal", "cauchy", "outlier"])
def test_over_many_sweeps_it_is_right_on_average(draw):
    """Of the best expected, which is chosen by the same runs; the interval holds as often."""
    rng, off, held = np.random.default_rng(1), [], []
    for _ in range(150):
        true = rng.normal(0.6, 0.08, 40)
        if draw == "cauchy":
            true = 0.6 + 0.05 * np.clip(rng.standard_cauchy(40), -8, 8)
        elif draw == "outlier":
            true[0] = 0.25
        runs = {i: [rng.normal(mean, 0.06)] for i, mean in enumerate(true)}
        for i in sorted(runs, key=runs.get)[:5]:
            runs[i] += list(rng.normal(true[i], 0.06, 2))
        found = estimate(runs)
        best = min(found, key=lambda i: found[i].mean)
        low, high = found[best].interval
        off.append(found[best].mean - true[best])
        held.append(low <= true[best] <= high)
    assert abs(np.mean(off)) < 0.015 and np.mean(held) > 0.9


def test_few_runs():
    assert estimate({}) == {}
    assert estimate({0: [0.4]}) == {0: Estimate(0.4, 0.0, 0)}
    assert estimate({0: [0.4, 0.6]}) == {0: Estimate(0.5, pytest.approx(0.1), 1)}
    assert estimate({0: [3.0], 1: [3.0]}) == {i: Estimate(3.0, 0.0, 0) for i in range(2)}
    ties = estimate({0: [9.0], 1: [9.0], 2: [9.0, 9.0], 3: [9.0], 4: [5.0]})  # counts of modes
    assert min(ties, key=lambda i: ties[i].mean) == 4
    assert all(np.isfinite([one.mean, one.std]).all() for one in ties.values())


def test_thousands_of_configurations_are_no_matter():
    rng = np.random.default_rng(0)
    found = estimate({i: [v] for i, v in enumerate(rng.normal(size=5000))} | {-1: [-4.0, -4.1]})
    assert min(found, key=lambda i: found[i].mean) == -1
    assert module.POINTS * 5000 * 8 < 50e6, "bytes of its largest array"


def test_one_run_far_off_does_not_drown_the_others():
    """A repetition that diverges late, or a formula near a pole: the rest are as they were."""
    rng = np.random.default_rng(0)
    runs = {i: [v] for i, v in enumerate(rng.normal(0.5, 0.1, 15))}
    runs[0] = [0.30, 0.34, 0.31]
    before = estimate(runs)
    for far in (3.0, 1e3, 1e6):
        found = estimate({**runs, 1: [*runs[1], far]})
        low, high = found[0].interval
        assert low < 0.30 < 0.34 < high and abs(found[0].mean - before[0].mean) < 0.12
        assert found[0].beats(found[5]) > 0.5


def test_a_configuration_whose_own_runs_differ_is_no_sure_winner():
    """Most configurations end at the same floor, so that the quartiles of all tell nothing."""
    rng = np.random.default_rng(0)
    runs = {i: [v] for i, v in enumerate(rng.normal(8.06, 0.005, 9))}
    runs[0] = [8.056, 8.059, 8.064, 9.057]
    runs[1] += [8.07]
    found = estimate(runs)
    low, high = found[0].interval
    assert low < 8.06 and high > np.mean(runs[0])
    assert 0.05 < found[0].beats(found[1]) < 0.95
    assert found[1].interval[1] - found[1].interval[0] < 0.1, "the other ones are not concerned"
