"""ali.svm against scikit-learn's LinearSVC, and by the certificate of optimality."""

import os

import numpy as np
import pytest
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_info

from ali.errors import UserError
from ali.evaluation import svm, systems

pytestmark = pytest.mark.numerics


def clusters(n, d, classes=4, noise=3.0, seed=0, scale=1.0):
    """Overlapping Gaussian classes with correlated features and an offset: (n, d) fp32, (n,)."""
    rng = np.random.default_rng(seed)
    problem = np.random.default_rng(1)  # the same classes for every seed
    mix = problem.standard_normal((d, d)) * np.logspace(0, -1, d)[:, None]
    centres = problem.standard_normal((classes, d))
    y = np.arange(n) % classes
    x = (centres[y] + noise * rng.standard_normal((n, d))) @ mix + 0.5
    return (scale * x).astype(np.float32), y


def objectives(machines, x, y):
    """LIBLINEAR's primal objective (P, K), and its dual at the coefficients the primal implies."""
    x = np.concatenate([x, np.ones((len(x), 1))], 1).astype(np.float64)
    w = np.concatenate([machines.w, machines.b[..., None]], 2)
    sign = np.where(y == machines.classes[:, None], 1.0, -1.0)
    c = machines.cs[:, None]
    hinge = np.maximum(0, 1 - sign * (w @ x.T))  # (P, K, N)
    primal = (w**2).sum(2) / 2 + c * (hinge**2).sum(2)
    alpha = 2 * c[..., None] * hinge
    dual = alpha.sum(2) - (((alpha * sign) @ x) ** 2).sum(2) / 2 - (alpha**2).sum(2) / (4 * c)
    return primal, dual


KERNELS = os.environ.get("OPENBLAS_CORETYPE")


@pytest.mark.skipif(KERNELS not in ("Haswell", "SkylakeX"), reason="make test-numerics sets them")
def test_openblas_uses_the_kernels_it_is_told_to():
    used = {lib["architecture"] for lib in threadpool_info() if lib["internal_api"] == "openblas"}
    assert used == {KERNELS}


@pytest.mark.filterwarnings("error::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("n", "d", "noise"),
    [(120, 300, 3.0), (200, 200, 3.0), (150, 149, 3.0), (300, 120, 3.0), (400, 30, 3.0)],
    ids=["n<d", "n=d", "n=d+1", "n>d", "n>>d"],
)
def test_equals_linear_svc(n, d, noise):
    x, y = clusters(n, d, noise=noise)
    valid, valid_y = clusters(4000, d, noise=noise, seed=5)
    cs = np.array([1e-2, 1.0, 1e2]) / (x.astype(float) ** 2).sum(1).mean()
    machines = svm.fit(x, y, cs)
    primal, _ = objectives(machines, x, y)
    for i, c in enumerate(cs):
        peer = LinearSVC(C=c, dual=False, tol=1e-9, max_iter=3000).fit(x.astype(float), y)
        theirs = svm.Machines(np.array([c]), peer.classes_, peer.coef_[None], peer.intercept_[None])
        np.testing.assert_allclose(primal[i], objectives(theirs, x, y)[0][0], rtol=1e-6)
        error = (peer.predict(valid) != valid_y).mean()
        assert abs(machines.errors(valid, valid_y)[i] - error) <= 5e-4
    assert 0.01 < machines.errors(valid, valid_y).min() < 0.75  # neither trivial nor chance


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
@pytest.mark.parametrize(("n", "d"), [(150, 400), (100, 40), (300, 40)])
def test_whole_grid_is_optimal(n, d, scale):
    """The duality gap bounds what is lost: no other solver is involved.

    It cancels to nothing where 2C times the rounding of an output is no longer small; there the
    objective must still rise with C, and by no more than C does.
    """
    x, y = clusters(n, d, scale=scale)
    machines = svm.fit(x, y)
    primal, dual = objectives(machines, x, y)
    told_apart = 1e7 * np.finfo(float).eps * (x.astype(float) ** 2).sum() < 1 / (2 * svm.GRID)
    assert told_apart.sum() >= 15
    gap = (primal - dual) / primal
    assert (abs(gap[told_apart]) < 1e-6).all()
    assert (np.diff(primal, axis=0) >= -1e-9 * primal[1:]).all()
    assert (np.diff(primal / svm.GRID[:, None], axis=0) <= 1e-9 * primal[1:]).all()


@pytest.mark.parametrize(("n", "d"), [(200, 250), (200, 90), (400, 60)])
def test_path_equals_single_fits(n, d):
    """Warm starts, borders, stale factors and kept sums change nothing; a lone C is reached."""
    x, y = clusters(n, d)
    valid, valid_y = clusters(1000, d, seed=5)
    path = svm.fit(x, y)
    for i in range(0, 50, 7):
        alone = svm.fit(x, y, svm.GRID[i : i + 1])
        np.testing.assert_allclose(
            path.w[i], alone.w[0], rtol=1e-5, atol=1e-7 * abs(alone.w[0]).max()
        )
        assert abs(path.errors(valid, valid_y)[i] - alone.errors(valid, valid_y)[0]) <= 1e-3


@pytest.mark.parametrize(
    ("n", "d", "seed", "i"), [(100, 120, 0, 49), (200, 250, 1, 46), (200, 250, 7, 46)]
)
def test_a_blocked_step_is_not_the_minimum(n, d, seed, i):
    """A row on the margin can end a step after 1e-13 of it, far from the minimum."""
    x, y = clusters(n, d, seed=seed)
    path, alone = svm.fit(x, y), svm.fit(x, y, svm.GRID[i : i + 1])
    np.testing.assert_allclose(alone.w[0], path.w[i], rtol=0, atol=1e-9 * abs(path.w[i]).max())
    f = np.where(y == path.classes[:, None], 1.0, -1.0) * (alone.w[0] @ x.T + alone.b[0][:, None])
    assert f.min() > 1 - 1e-6  # separable: no row is inside the margin of so large a C


def test_every_c_counts_where_the_gram_matrix_is_regular():
    x, _ = clusters(60, 100)
    assert svm._Kernel(x.astype(float)).floor == 0


@pytest.mark.parametrize(("n", "d"), [(90, 40), (300, 40)])
def test_from_a_c_on_all_count_as_one(n, d):
    """That of the docstring; λ is 0 as the rows outnumber the features."""
    x, y = clusters(n, d, noise=10.0)
    trace = (x.astype(float) ** 2).sum() + n
    largest = 1 / (2e4 * np.finfo(float).eps * trace)
    w = svm.fit(x, y, [largest / 4, largest * 1.001, largest * 1e3, largest * 1e9]).w
    lone = svm.fit(x, y, [largest * 1e6]).w[0]
    size = abs(w[1]).max()
    assert abs(w[0] - w[1]).max() > 1e-11 * size
    np.testing.assert_allclose(w[2:], [w[1], w[1]], rtol=0, atol=1e-13 * size)
    np.testing.assert_allclose(lone, w[1], rtol=0, atol=1e-6 * size)


def test_equal_rows_that_leave_together_leave_no_error():
    """The border that takes out two equal rows is singular but for the ridge."""
    x, _ = clusters(40, 99)
    x = np.concatenate([x[:10], x[:30]]).astype(float)
    problem, y = svm._Kernel(x), np.where(np.arange(40) % 2, 1.0, -1.0)
    everything, some = np.ones(40, bool), np.arange(40) % 10 != 3
    some[[23, 33]] = True  # rows 3 and 13 leave, which are equal
    ridge = problem.floor
    found = systems.Factor(problem.k, everything, ridge).solve(problem.k, y, some, ridge)
    assert found is not None
    a, f, exact = found
    assert exact
    np.testing.assert_array_equal(f, systems.times(problem.k, a))
    np.testing.assert_array_equal(a[~some], 0)
    residual = (y - f - ridge * a)[some]
    assert abs(residual).max() < 1e2 * np.finfo(float).eps * problem.scale * abs(a).max()


@pytest.mark.parametrize("ridge", [1e6, 1e3, 30.0, 1.0])
def test_eigenvectors_solve_as_a_factor_does(ridge):
    """For all rows and without some; a ridge that is lost in fp32 is left to a factor."""
    x, _ = clusters(150, 400)
    k, y = x.astype(float) @ x.T.astype(float), np.where(np.arange(150) % 3, 1.0, -1.0)
    spectrum = systems.Spectrum(k)
    for active in (np.ones(150, bool), np.arange(150) % 5 > 0):
        found = spectrum.solve(y, active, ridge)
        assert (found is None) == (ridge < systems.LEAST_RIDGE * spectrum.values[-1])
        if found is not None and found[2]:
            a = np.zeros(150)
            block = k[np.ix_(active, active)] + ridge * np.eye(active.sum())
            a[active] = np.linalg.solve(block, y[active])
            np.testing.assert_allclose(found[0], a, rtol=0, atol=1e-8 * abs(a).max())
            np.testing.assert_allclose(found[1], k @ found[0], rtol=1e-12)
    assert spectrum.solve(y, np.arange(150) % 2 > 0, 1e3) is None  # too many are left out


def test_conjugate_gradients_come_near_a_smaller_ridge():
    x, _ = clusters(100, 300)
    k, y = x.astype(float) @ x.T.astype(float), np.where(np.arange(100) % 3, 1.0, -1.0)
    active, ridge = np.arange(100) % 4 > 0, 300.0
    factor = systems.Factor(k, active, ridge)
    a, f, _ = factor.solve(k, y, active, ridge)
    near, f, exact = factor.nearly(k, y, active, ridge / 2.3, (a, f))
    want = systems.Factor(k, active, ridge / 2.3).solve(k, y, active, ridge / 2.3)[0]
    assert not exact and (near[~active] == 0).all()
    np.testing.assert_allclose(f, k @ near, rtol=1e-9)
    assert np.linalg.norm(near - want) < 0.05 * np.linalg.norm(a - want)


def test_rotated_features_give_the_same_scores():
    x, y = clusters(100, 150)
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((150, 150)))[0]
    a, b = svm.fit(x.astype(float), y, [0.01, 1.0]), svm.fit(x @ q, y, [0.01, 1.0])
    np.testing.assert_allclose(a.w @ x.T.astype(float), b.w @ (x @ q).T, atol=1e-6)


@pytest.mark.parametrize("d", [20, 200])
def test_equal_rows_with_different_labels(d):
    """Not separable whatever C is, and the Gram matrix is singular: errors stay finite."""
    x, y = clusters(60, d)
    x, y = np.concatenate([x, x, x[:1] * 0]), np.concatenate([y, (y + 1) % 4, [0]])
    machines = svm.fit(x, y)
    assert np.isfinite(machines.w).all()
    assert (machines.errors(x, y) >= 0.49).all()


def test_constant_features_cannot_tell_classes_apart():
    """What a collapsed encoder gives; as LinearSVC it may still answer one class for all."""
    machines = svm.fit(np.ones((90, 300), np.float32), np.arange(90) % 3)
    np.testing.assert_allclose(
        machines.errors(np.ones((30, 300), np.float32), np.arange(30) % 3), 2 / 3
    )


def test_classes_are_those_that_occur():
    x, y = clusters(80, 20)
    y = np.array([1, 4, 7, 9])[y]
    machines = svm.fit(x, y, [1.0])
    assert machines.classes.tolist() == [1, 4, 7, 9]
    assert machines.errors(x, y)[0] < 0.6


def test_deterministic_whatever_torch_does():
    x, y = clusters(150, 300)
    first, second = svm.fit(x, y), svm.fit(x.copy(), y.copy())
    np.testing.assert_array_equal(first.errors(x, y), second.errors(x, y))
    np.testing.assert_allclose(first.w, second.w, rtol=1e-9, atol=1e-12)


def test_bad_input():
    x, y = clusters(20, 5)
    with pytest.raises(UserError, match="one class"):
        svm.fit(x, np.zeros(20, int))
    x[3, 2] = np.nan
    with pytest.raises(FloatingPointError):
        svm.fit(x, y)


def test_features_that_are_all_the_same_have_a_path():
    """A few black images: every residual is 0."""
    found = svm.fit(np.zeros((2, 5), np.float32), np.array([0, 1]))
    assert np.isfinite(found.w).all() and np.isfinite(found.b).all()
