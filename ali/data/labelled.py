"""Labelled draws: the few labelled images that a classifier is fitted to (§4.4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ali.config import Config
from ali.data import files
from ali.data.splits import Dataset
from ali.errors import UserError

# Labelled draw number i is the same in every trial, whatever the trial's seed: all trials are
# compared on the same labels, so the choice of labels adds nothing to the difference of two errors.
DRAWS_SEED = 160600704
TEST_DRAWS = 100  # per test error (§4.4)


def labelled_draw(dataset: Dataset, config: Config, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Labelled draw number `number` of config.labels images, the same for every config.seed.

    Returns:
        x: uint8 (config.labels, H, W, C).
        y: int64 (config.labels,), classes from 0.

    Raises UserError if the labelled pool has too few images.
    """
    pool = dataset.labelled
    assert pool.y is not None
    rng = np.random.default_rng([DRAWS_SEED, number])
    classes, names = dataset.classes, dataset.class_names
    rows = draw_labelled(pool.y, config.labels, rng, config.balanced, classes, names)
    return pool.x[rows], pool.y[rows]


def draw_labelled(
    y: np.ndarray,
    n: int,
    rng: np.random.Generator,
    balanced: bool = True,
    classes: int = 10,
    names: Sequence[str] = (),
) -> np.ndarray:
    """Indices int64 (n,) of n labelled images, distinct and in random order (§4.4).

    Balanced: ⌊n / classes⌋ of each class, and the remainder one each from random classes;
    otherwise uniformly at random. Raises UserError if `y` has too few, with the classes' `names`.
    """
    check_draw(y, n, balanced, classes, names)
    if not balanced:
        return rng.permutation(len(y))[:n]
    counts = np.full(classes, n // classes)
    counts[rng.permutation(classes)[: n % classes]] += 1
    chosen = [rng.permutation(np.flatnonzero(y == c))[:count] for c, count in enumerate(counts)]
    return rng.permutation(np.concatenate(chosen))


def check_draw(
    y: np.ndarray, n: int, balanced: bool, classes: int, names: Sequence[str] = ()
) -> None:
    """Raises UserError if a draw of `n` from labels `y` (N,) is impossible."""
    if n > len(y):
        raise UserError(f"--labels {n}: the labelled pool has {len(y)} images; ask for fewer")
    counts, each = np.bincount(y, minlength=classes), -(-n // classes)
    if balanced and counts.min() < each:
        lacking = np.flatnonzero(counts < each).tolist()
        few = [f"{counts[c]} of class {names[c] if names else c}" for c in lacking]
        raise UserError(
            f"--labels {n}: a balanced draw takes {each} of each class, but the pool has "
            f"{files.listed(few)}; ask for fewer, or use --no-balanced"
        )


def check_draws(y: np.ndarray, config: Config, classes: int, names: Sequence[str] = ()) -> None:
    """Raises UserError if a draw from the pool's labels `y` (N,) cannot train a classifier."""
    check_draw(y, config.labels, config.balanced, classes, names)
    balanced = config.balanced and min(config.labels, classes) > 1
    if balanced or config.labels > np.bincount(y).max():  # every draw has at least two classes
        return
    for number in range(max(config.draws, TEST_DRAWS)):
        rng = np.random.default_rng([DRAWS_SEED, number])
        drawn = y[draw_labelled(y, config.labels, rng, config.balanced, classes)]
        if drawn.min() == drawn.max():
            alone = names[drawn[0]] if names else drawn[0]
            raise UserError(
                f"--labels {config.labels}: labelled draw {number} has class {alone} alone, "
                "which teaches no classifier; ask for more, or add images of other classes"
            )


def pixel_features(x: np.ndarray) -> np.ndarray:
    """Pixels as features: uint8 (N, H, W, C) → fp32 (N, H·W·C) in [0, 1].

    Points in the plane, fp32 (N, 1, 1, 2), keep their values.
    """
    flat = x.reshape(len(x), -1)
    return flat if flat.dtype == np.float32 else flat.astype(np.float32) / 255
