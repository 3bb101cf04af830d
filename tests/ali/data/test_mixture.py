"""ali.data.mixture: the mixture of Fig. 7, and the measures of how well samples cover it."""

from pathlib import Path

import numpy as np
import pytest

from ali import data
from ali.data import mixture
from tests.ali.data.conftest import check_refused, config

pytestmark = pytest.mark.numerics


@pytest.mark.parametrize("modes, side", [(9, {-2, 0, 2}), (25, {-4, -2, 0, 2, 4})])
def test_centres_are_the_square_grid(modes, side):
    centres = mixture.centres(modes)
    assert centres.dtype == np.float32
    assert {tuple(c) for c in centres.tolist()} == {(a, b) for a in side for b in side}


@pytest.mark.parametrize("modes", [9, 25])
def test_draws_follow_the_mixture(modes):
    x, mode = mixture.sample_points(50_000, modes, seed=1)
    assert x.dtype == np.float32 and mode.dtype == np.int64
    noise = (x - mixture.centres(modes)[mode]) / mixture.SIGMA
    assert np.abs(noise.mean(axis=0)).max() < 0.02
    assert np.abs(np.cov(noise.T) - np.eye(2)).max() < 0.03
    counts = np.bincount(mode, minlength=modes)
    assert np.abs(counts / (50_000 / modes) - 1).max() < 0.1
    assert mixture.modes_missed(x, modes) == 0
    # Rayleigh: P(‖ε‖ ≤ 3) = 1 − exp(−9/2)
    assert mixture.near_modes(x, modes) == pytest.approx(1 - np.exp(-4.5), abs=0.003)


def test_draws_repeat_by_seed():
    x, mode = mixture.sample_points(100, 9, seed=3)
    again, again_mode = mixture.sample_points(100, 9, seed=3)
    assert np.array_equal(x, again) and np.array_equal(mode, again_mode)
    assert not np.array_equal(x, mixture.sample_points(100, 9, seed=4)[0])


def test_nearest_is_the_mode_drawn_from():
    x, mode = mixture.sample_points(1000, 25, seed=0)
    assert np.array_equal(mixture.nearest_mode(x, 25)[0], mode)


def test_a_mode_is_missed_where_no_sample_is_within_3_sigma():
    inside, outside = 2.99 * mixture.SIGMA, 3.01 * mixture.SIGMA
    points = np.array([[0.0, 0.0], [0.0, inside], [2 + outside, 2.0], [-2 - inside, 0.0]])
    assert mixture.modes_missed(points, 9) == 7  # (0, 0) and (−2, 0) are covered
    assert mixture.near_modes(points, 9) == 0.75
    assert mixture.count_by_mode(points, 9).tolist() == [0, 1, 0, 0, 2, 0, 0, 0, 0]
    assert mixture.modes_missed(np.full((5, 2), 1.0), 9) == 9  # between modes
    assert mixture.modes_missed(mixture.centres(9), 9) == 0


def test_a_mode_is_covered_by_a_tenth_of_its_share():
    points = np.repeat(mixture.centres(9), 1000, axis=0)
    for moved, missed in ((900, 0), (901, 1)):  # of the thousand of one mode, into the void
        spread = points.copy()
        spread[:moved] = 1.0
        assert mixture.modes_missed(spread, 9) == missed
    everywhere = np.random.default_rng(0).uniform(-3, 3, (10_000, 2))
    assert mixture.modes_missed(everywhere, 9) > 0  # each mode has samples, 0.2 % of them


def test_reconstruction_distance_of_another_draw_of_the_mode():
    x, _ = mixture.sample_points(20_000, 9, seed=0)
    assert mixture.reconstruction_distance(x, x) == 0
    assert mixture.reconstruction_distance(x, x + np.float32([3, 4])) == pytest.approx(5)
    rng = np.random.default_rng(0)
    a, b = mixture.SIGMA * rng.standard_normal((2, 20_000, 2))
    assert mixture.reconstruction_distance(a, b) == pytest.approx(
        mixture.SIGMA * np.sqrt(np.pi), rel=0.02
    )


@pytest.mark.parametrize("modes", [9, 25])
def test_mixture(modes, cache):
    settings = config("mixture", None, modes=modes)
    dataset, test = data.load(settings), data.load_test(settings)
    parts = (dataset.train, dataset.valid, test)
    assert [len(part) for part in parts] == [100_000, 10_000, 10_000]
    assert dataset.classes == modes and dataset.train.x.dtype == np.float32
    for part in parts:
        assert part.x.shape[1:] == (1, 1, 2) and set(part.y) == set(range(modes))
        away = part.x[:, 0, 0] - mixture.centres(modes)[part.y]
        assert abs(away.std() / mixture.SIGMA - 1) < 0.05 and abs(away.mean()) < 0.005
    assert not (dataset.valid.x == test.x).any() and not (dataset.train.x[:10_000] == test.x).any()
    again = data.load(settings)
    assert again.fingerprint == dataset.fingerprint and (again.train.x == dataset.train.x).all()
    assert not cache.exists()


def test_mixture_of_any_size(cache):
    less = data.load(config("mixture", None, train_size=500, labels=1000))
    more = data.load(config("mixture", None, train_size=120_000))
    assert (len(less.train), len(less.labelled)) == (500, 100_000) and len(more.train) == 120_000
    assert (less.valid.x == more.valid.x).all() and less.fingerprint != more.fingerprint
    check_refused("leave out --data-dir", config("mixture", Path(".")))
