"""Table 1's rows that need no training of networks: nearest neighbour, L2-SVM and transductive SVM.

All use pixels in [0, 1] and follow §4.4 as ali.evaluation.protocol does: the same labelled draws;
hyperparameters chosen once, by the validation error on draw 0; then one classifier per draw and its
error on the test images.

The paper does not say how its TSVM was set up. Here it is linear, one class against the rest, with
the squared hinge of ali.evaluation.svm on unlabelled images too (Sindhwani & Keerthi 2006):

    min_w,y' ½‖w‖² + C Σ_i max(0, 1 − y_i w·x_i)² + C' Σ_j max(0, 1 − y'_j w·x_j)²,

where y' has the same fraction of positives as y. It is minimised alternately over w and over y',
with C' increasing to C·(labelled / unlabelled), where both sums have the same weight. That finds a
local minimum, starting from the SVM of the labelled images alone. It differs from Vapnik's in two
ways: the unlabelled images are training images, not the test images, on which nothing is chosen
here; and pixels are first projected on the COMPONENTS leading principal components of the
unlabelled images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from ali.config import Config
from ali.data import Dataset, Images, labelled_draw, pixel_features
from ali.data.labelled import DRAWS_SEED
from ali.evaluation import svm

NEIGHBOURS = (1, 2, 4, 8, 16, 32, 64)  # candidates of k
COMPONENTS = 256  # principal components, the features of the transductive SVM
RISE = (1 / 64, 1 / 16, 1 / 4, 1.0)  # weight of all unlabelled images relative to all labelled
TURNS = 10  # most alternations between w and y' at one weight
NEAR = range(-6, 7, 2)  # candidates of C: steps in svm.GRID from the plain SVM's C

CHUNK = 5000  # images classified at once

Encode = Callable[[np.ndarray], np.ndarray]  # uint8 (N, H, W, C) → features (N, D)
Classify = Callable[[np.ndarray], np.ndarray]  # features (N, D) → labels (N,)


def nearest_neighbour_errors(
    dataset: Dataset,
    test: Images,
    config: Config,
    draws: int = 100,
    features: Encode = pixel_features,
) -> np.ndarray:
    """Test errors (draws,), fractions, of k nearest neighbours (Euclidean distance of features)."""
    from sklearn.neighbors import KNeighborsClassifier

    def machine(draw: int, k: int) -> Classify:
        x, y = _drawn(dataset, config, draw, features)
        return KNeighborsClassifier(k, algorithm="brute").fit(x, y).predict

    ks = [k for k in NEIGHBOURS if k <= config.labels]
    k = ks[_best([machine(0, k) for k in ks], features, dataset.valid)]
    return _errors([machine(draw, k) for draw in range(draws)], features, test)


def raw_pixel_errors(
    dataset: Dataset, test: Images, config: Config, draws: int = 100
) -> np.ndarray:
    """Test errors (draws,), fractions, of the L2-SVM on pixels."""
    c = svm.GRID[_plain_c(dataset, config, pixel_features)]

    def machine(draw: int) -> Classify:
        return _classifier(svm.fit(*_drawn(dataset, config, draw), [c]))

    return _errors([machine(draw) for draw in range(draws)], pixel_features, test)


def transductive_svm_errors(
    dataset: Dataset,
    test: Images,
    config: Config,
    draws: int = 100,
    unlabelled: int = 4000,
    features: Encode = pixel_features,
) -> np.ndarray:
    """Test errors (draws,), fractions, of the transductive SVM with `unlabelled` unlabelled images.

    They are drawn once from dataset.train, or are all of it if it has fewer.
    """
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(DRAWS_SEED)
    count = min(unlabelled, len(dataset.train))
    chosen = np.sort(rng.permutation(len(dataset.train))[:count])
    known = features(dataset.train.x[chosen])
    components = min(COMPONENTS, *known.shape)
    pca = PCA(components, svd_solver="randomized", random_state=0).fit(known)

    def encode(x: np.ndarray) -> np.ndarray:
        return pca.transform(features(x))

    x_unlabelled = encode(dataset.train.x[chosen])

    def machine(draw: int, c: float) -> Classify:
        x, y = _drawn(dataset, config, draw, encode)
        return _classifier(transductive_svm(x, y, x_unlabelled, c))

    plain = _plain_c(dataset, config, encode)
    cs = [svm.GRID[plain + near] for near in NEAR if 0 <= plain + near < len(svm.GRID)]
    c = cs[_best([machine(0, c) for c in cs], encode, dataset.valid)]
    return _errors([machine(draw, c) for draw in range(draws)], encode, test)


def transductive_svm(
    x: np.ndarray, y: np.ndarray, unlabelled: np.ndarray, c: float
) -> svm.Machines:
    """Transductive SVMs for one C; without unlabelled rows plain SVMs.

    Args:
        x: (N, D) labelled features.
        y: (N,) their labels.
        unlabelled: (U, D) features.
    """
    machines = svm.fit(x, y, [c])
    if not len(unlabelled):
        return machines
    w = np.concatenate([machines.w[0], machines.b[0][:, None]], 1)  # (K, D+1)
    rows = np.concatenate([x, unlabelled]).astype(np.float64)
    rows = np.concatenate([rows, np.ones((len(rows), 1))], 1)  # (N+U, D+1)
    known = np.where(y == machines.classes[:, None], 1.0, -1.0)  # (K, N)
    positive = np.rint((known > 0).mean(1) * len(unlabelled)).astype(int)  # (K,)
    for weight in RISE:
        costs = np.repeat([c, c * weight * len(x) / len(unlabelled)], [len(x), len(unlabelled)])
        guess: np.ndarray | None = None
        for _ in range(TURNS):
            # Of all y' with that many positives, the one with the largest outputs costs least.
            before = guess
            guess = _largest(w @ rows[len(x) :].T, positive)
            if before is not None and (guess == before).all():
                break
            w = _weighted_svm(rows, np.concatenate([known, guess], 1), costs, w)
    return svm.Machines(machines.cs, machines.classes, w[None, :, :-1], w[None, :, -1])


def _largest(f: np.ndarray, count: np.ndarray) -> np.ndarray:
    """1 at the `count` (K,) largest values of each row of f (K, U), −1 elsewhere."""
    ranks = np.argsort(np.argsort(-f, axis=1, kind="stable"), axis=1)
    return np.where(ranks < count[:, None], 1.0, -1.0)


def _weighted_svm(rows: np.ndarray, y: np.ndarray, costs: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The w (K, D) that minimise ½‖w‖² + Σ_i costs_i max(0, 1 − y_ki w_k·x_i)², from w.

    Args: rows (N, D); y (K, N) of ±1; costs (N,).

    All classes at once by L-BFGS, in coordinates v = Lᵀw where the Hessian with every row inside
    the margin, L Lᵀ = I + 2 Σ costs_i x_i x_iᵀ, is the identity.
    """
    lower = np.linalg.cholesky(np.eye(rows.shape[1]) + 2 * (rows.T * costs) @ rows)

    def loss(v: np.ndarray) -> tuple[float, np.ndarray]:
        w = solve_triangular(lower, v.reshape(shape).T, lower=True, trans=1).T
        hinge = np.maximum(0, 1 - y * (w @ rows.T))  # (K, N)
        gradient = w - 2 * (costs * y * hinge) @ rows
        value = (w * w).sum() / 2 + (costs * hinge * hinge).sum()
        return float(value), solve_triangular(lower, gradient.T, lower=True).T.ravel()

    shape = w.shape
    with threadpool_limits(1, "blas"):  # as in ali.evaluation.svm
        found = minimize(
            loss,
            (w @ lower).ravel(),
            method="L-BFGS-B",
            jac=True,
            options={"ftol": 1e-9, "gtol": 0.0, "maxiter": 500, "maxfun": 1000},
        )
        return solve_triangular(lower, found.x.reshape(shape).T, lower=True, trans=1).T


# The protocol


def _plain_c(dataset: Dataset, config: Config, encode: Encode) -> int:
    """Index in svm.GRID of the plain SVM's C."""
    machines = svm.fit(*_drawn(dataset, config, 0, encode))
    assert dataset.valid.y is not None
    return int(machines.errors(encode(dataset.valid.x), dataset.valid.y).argmin())


def _drawn(
    dataset: Dataset, config: Config, draw: int, encode: Encode = pixel_features
) -> tuple[np.ndarray, np.ndarray]:
    """Features (config.labels, D) and labels (config.labels,) of labelled draw number `draw`."""
    x, y = labelled_draw(dataset, config, draw)
    return encode(x), y


def _classifier(machines: svm.Machines) -> Classify:
    """The classifier of SVMs for a single C."""
    return lambda x: machines.classes[(x @ machines.w[0].T + machines.b[0]).argmax(1)]


def _best(candidates: Sequence[Classify], encode: Encode, valid: Images) -> int:
    """Index of the candidate with the lowest validation error."""
    return int(_errors(candidates, encode, valid).argmin())


def _errors(classifiers: Sequence[Classify], encode: Encode, images: Images) -> np.ndarray:
    """Fraction of images that each classifier gets wrong, (len(classifiers),)."""
    assert images.y is not None
    wrong = np.zeros(len(classifiers))
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK]
        x = encode(part.x)
        wrong += [(classify(x) != part.y).sum() for classify in classifiers]
    return wrong / len(images)
