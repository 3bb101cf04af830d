"""The Gaussian mixtures of Fig. 7: their modes, draws from them, and how a model covers them."""

from __future__ import annotations

import numpy as np

SIGMA = 0.05  # standard deviation of every mode, along both axes
NEAR = 3 * SIGMA  # a point this near its nearest centre is of that mode: 98.9 % of the mixture is
SHARE = 0.1  # of its fair share of the samples, for a mode to count as covered
_GRID = {9: (-2, 0, 2), 25: (-4, -2, 0, 2, 4)}  # a mode at every pair of these


def centres(modes: int) -> np.ndarray:
    """The modes' centres, fp32 (modes, 2), of the mixture of 9 or 25."""
    side = np.array(_GRID[modes], np.float32)
    return np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2)


def draw(n: int, modes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """n points of the mixture, fp32 (n, 2), and the index of each one's mode, int64 (n,)."""
    rng = np.random.default_rng(seed)
    mode = rng.integers(modes, size=n)
    points = centres(modes)[mode] + SIGMA * rng.standard_normal((n, 2), np.float32)
    return points, mode


def nearest(points: np.ndarray, modes: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each point (n, 2): the index of the nearest centre, int64 (n,), and the distance to it."""
    distances = np.linalg.norm(points[:, None] - centres(modes), axis=-1)  # (n, modes)
    return distances.argmin(axis=1), distances.min(axis=1)


def counts(points: np.ndarray, modes: int) -> np.ndarray:
    """Samples, of (n, 2), that fall in each mode: within 3σ of its centre; int64 (modes,)."""
    mode, distance = nearest(points, modes)
    return np.bincount(mode[distance <= NEAR], minlength=modes)


def modes_missed(points: np.ndarray, modes: int) -> int:
    """Modes that too few of the samples, (n, 2), fall in: 0 is best, `modes` the worst.

    A mode is covered by a tenth of its fair share, n / modes. The authors' code counts a mode from
    one sample on; by that rule a generator that sprays the whole plane covers them all.
    """
    return int((counts(points, modes) < SHARE * len(points) / modes).sum())


def near_modes(points: np.ndarray, modes: int) -> float:
    """Share of the samples, (n, 2), within 3σ of a mode: 0.989 for the mixture itself."""
    return float((nearest(points, modes)[1] <= NEAR).mean())


def reconstruction_distance(x: np.ndarray, x_hat: np.ndarray) -> float:
    """Mean ‖x − G_x(ẑ)‖ over points and their reconstructions, both (n, 2).

    0 is best; about 0.09 (σ√π) for a reconstruction that is another draw of the same mode.
    """
    return float(np.linalg.norm(x - x_hat, axis=1).mean())
