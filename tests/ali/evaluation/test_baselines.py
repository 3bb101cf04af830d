"""ali.baselines: the transductive SVM where the answer is known, and the protocol's choices."""

import dataclasses

import numpy as np
import pytest

from ali.config import Config
from ali.data import Dataset, Images, draw_labelled
from ali.data.labelled import DRAWS_SEED
from ali.evaluation import baselines, protocol, svm

pytestmark = pytest.mark.numerics

CONFIG = Config(labels=40, draws=2)


def bands(n, half, seed):
    """Two horizontal bands, one a class, 2·half long, 1.5 apart: (n, 2), (n,)."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    return np.stack([rng.uniform(-half, half, n), 2 * y - 1 + rng.uniform(-0.25, 0.25, n)], 1), y


def error(machines, x, y):
    return machines.errors(x.astype(np.float32), y)[0]


def objective(w, rows, y, costs):
    hinge = np.maximum(0, 1 - y * (w @ rows.T))
    return (w**2).sum(1) / 2 + (costs * hinge**2).sum(1)


@pytest.mark.parametrize(("half", "off"), [(1.5, 1.0), (2.5, 0.5)])
def test_unlabelled_points_turn_a_misled_machine(half, off):
    """The two labelled points lie aslant; the gap between the bands does not."""
    x, y = np.array([[-off, -1.0], [off, 1.0]]), np.array([0, 1])
    unlabelled, _ = bands(300, half, 0)
    test, truth = bands(1000, half, 1)
    assert error(svm.fit(x, y, [10.0]), test, truth) > 0.09
    machines = baselines.transductive_svm(x, y, unlabelled, 10.0)
    assert error(machines, test, truth) == 0
    slant = machines.w[0, 1, 0] / machines.w[0, 1, 1]  # 0: along the bands
    assert abs(slant) < 0.2 * off


def test_without_unlabelled_points_it_is_the_plain_machine():
    x, y = bands(60, 1.5, 0)
    plain, same = svm.fit(x, y, [0.3]), baselines.transductive_svm(x, y, x[:0], 0.3)
    np.testing.assert_array_equal(same.w, plain.w)
    np.testing.assert_array_equal(same.b, plain.b)


def test_weighted_svm_equals_repeated_rows():
    """A cost of 3C is a row three times; and the start does not matter."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 6)) + 0.5
    y = (x[:, 0] + rng.standard_normal(50) > 0).astype(int)
    times = rng.integers(1, 4, 50)
    peer = svm.fit(np.repeat(x, times, 0), np.repeat(y, times), [0.7])
    rows = np.concatenate([x, np.ones((50, 1))], 1)
    sign = np.where(y == np.array([[0], [1]]), 1.0, -1.0)
    got = baselines._weighted_svm(rows, sign, 0.7 * times, rng.standard_normal((2, 7)))
    theirs = np.concatenate([peer.w[0], peer.b[0][:, None]], 1)
    np.testing.assert_allclose(got, theirs, atol=1e-3)
    best = objective(theirs, rows, sign, 0.7 * times)
    np.testing.assert_allclose(objective(got, rows, sign, 0.7 * times), best, rtol=1e-6)


def test_labels_of_least_cost_keep_the_balance():
    """No other labelling with as many positives has a smaller hinge loss."""
    from itertools import combinations

    f = np.random.default_rng(0).standard_normal((1, 7))
    got = baselines._largest(f, np.array([3]))

    def loss(y):
        return (np.maximum(0, 1 - y * f) ** 2).sum()

    every = [np.where(np.isin(np.arange(7), some), 1, -1) for some in combinations(range(7), 3)]
    assert (got > 0).sum() == 3
    assert loss(got) == pytest.approx(min(map(loss, every)))


# The protocol


def images(n, seed):
    """Ten classes by the brightness of a patch, under noise."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 10, n)
    x = rng.integers(0, 100, (n, 4, 4, 3))
    x[:, 1:3, 1:3, 0] += (17 * y)[:, None, None]
    return Images(x.astype(np.uint8), y)


@pytest.fixture(autouse=True)
def short_grid(monkeypatch):
    monkeypatch.setattr(baselines, "NEAR", (0, 2))


@pytest.fixture(scope="module")
def dataset():
    pool = images(600, 0)
    return Dataset("patches", pool, pool, images(300, 1), 10, "0" * 16)


@pytest.fixture(scope="module")
def test_split():
    return images(400, 2)


def test_nearest_neighbours_equal_a_search_by_hand(dataset, test_split):
    """The same draws as the SVM's; k by the validation error of draw 0."""
    flat = [i.x.reshape(len(i), -1) / 255 for i in (dataset.labelled, dataset.valid, test_split)]

    def peer(draw, k, x, y):
        rng = np.random.default_rng([DRAWS_SEED, draw])
        rows = draw_labelled(dataset.labelled.y, CONFIG.labels, rng)
        near = ((x[:, None] - flat[0][rows]) ** 2).sum(2).argsort(1, kind="stable")[:, :k]
        votes = dataset.labelled.y[rows][near]
        return np.mean([np.bincount(v).argmax() for v in votes] != y)

    ks = [k for k in baselines.NEIGHBOURS if k <= CONFIG.labels]
    curve = [peer(0, k, flat[1], dataset.valid.y) for k in ks]
    k = ks[int(np.argmin(curve))]
    want = [peer(draw, k, flat[2], test_split.y) for draw in range(2)]
    got = baselines.nearest_neighbour_errors(dataset, test_split, CONFIG, draws=2)
    np.testing.assert_allclose(got, want, atol=0.01)
    assert got.mean() < 0.8  # chance: 0.9


def test_raw_pixels_equal_val_error_on_its_own_images(dataset):
    """On the validation set as test, the draws' mean is protocol.raw_pixel_error."""
    errors = baselines.raw_pixel_errors(dataset, dataset.valid, CONFIG, draws=2)
    assert errors.mean() == pytest.approx(protocol.raw_pixel_error(dataset, CONFIG), abs=0.004)


def test_nothing_is_chosen_on_test(dataset, test_split):
    """Half of the test images get the errors that they have within the whole."""
    for measure in (baselines.nearest_neighbour_errors, baselines.transductive_svm_errors):
        whole = measure(dataset, test_split, CONFIG, draws=2)
        halves = [
            measure(dataset, part, CONFIG, draws=2) for part in (test_split[:200], test_split[200:])
        ]
        np.testing.assert_allclose(whole, np.mean(halves, 0), atol=1e-12)


def test_transductive_svm_sees_its_unlabelled_images(dataset, test_split):
    few, many = (
        baselines.transductive_svm_errors(dataset, test_split, CONFIG, draws=2, unlabelled=n)
        for n in (30, 600)
    )
    assert few.shape == many.shape == (2,) and (few != many).any()
    assert many.mean() < 0.85
    all_of_it = baselines.transductive_svm_errors(dataset, test_split, CONFIG, 2, unlabelled=10**6)
    np.testing.assert_array_equal(all_of_it, many)


def test_labels_matter(dataset, test_split):
    shuffled = np.random.default_rng(0).permutation(dataset.labelled.y)
    wrong = dataclasses.replace(dataset, labelled=Images(dataset.labelled.x, shuffled))
    for measure in (baselines.raw_pixel_errors, baselines.transductive_svm_errors):
        right = measure(dataset, test_split, CONFIG, draws=2).mean()
        assert measure(wrong, test_split, CONFIG, draws=2).mean() > right
