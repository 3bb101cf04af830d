"""Linear systems of the SVM's path: (K_AA + ridge) a_A = y_A for many sets A of K's rows.

Two solvers for different sets: `Spectrum` for nearly all rows at any ridge, `Factor` for sets
near the one it was made for. The solutions of both are refined to the rounding of K a.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.linalg import blas, eigh, lapack

EPS = np.finfo(float).eps
LEFT_OUT = 0.25  # share of the rows without which `Spectrum` is still faster than a new factor
LEAST_RIDGE = 2e-6  # in largest eigenvalues of K, for `Spectrum`: it is in fp32
CG_STEPS = 2
EXACT, ROUGH = 1e-9, 1e-4  # residuals, in those of a = 0 on A: of a solution, and of a step to one
Apply = Callable[[np.ndarray], np.ndarray]  # (N,) right-hand sides to (N,) solutions, nearly
Near = tuple[np.ndarray, np.ndarray]  # a (N,), 0 off A; K a (N,)
Solution = tuple[np.ndarray, np.ndarray, bool]  # a (N,), 0 off A; K a (N,); whether exact


def times(k: np.ndarray, a: np.ndarray) -> np.ndarray:
    """K a of a symmetric K: half of it is read, in two thirds of the time of k @ a."""
    return blas.dsymv(1.0, k.T, a)  # the transpose has Fortran's order: no copy is made


def solve(m: np.ndarray, rhs: np.ndarray, ridge: float) -> np.ndarray:
    return lapack.dpotrs(_cholesky(m, np.arange(len(m)), ridge), rhs, lower=1)[0]


def least_eigenvalue(k: np.ndarray) -> float:
    """A lower bound, 1/‖K⁻¹‖₁ as LAPACK estimates it, and 0 where K is singular to rounding."""
    lower, info = lapack.dpotrf(k.T, lower=1)
    norm = np.abs(k).sum(0).max()
    return norm * lapack.dpocon(lower, norm, uplo="L")[0] if info == 0 else 0.0


class Spectrum:
    """K = QΛQᵀ in fp32, which serves K + ridge for every ridge; solves for all rows but a few."""

    def __init__(self, k: np.ndarray) -> None:
        self.k = k
        values, vectors = eigh(k.astype(np.float32), driver="evr", check_finite=False)
        self.values, self.vectors = np.maximum(0, values), np.ascontiguousarray(vectors)

    def solve(self, y: np.ndarray, active: np.ndarray, ridge: float) -> Solution | None:
        """a (N,) with (K_AA + ridge) a_A = y_A, 0 elsewhere, and K a (N,).

        None where a factor of A is cheaper, or the ridge is lost in fp32.
        """
        left = np.flatnonzero(~active)
        if len(left) > LEFT_OUT * len(y) or ridge < LEAST_RIDGE * self.values[-1]:
            return None
        # Rows L that are left out are held at 0 by multipliers u, with M = K + ridge:
        # a = M⁻¹(y − E_L u), a_L = 0.
        inverse, q = 1 / (self.values + np.float32(ridge)), self.vectors[left]
        scaled = q * np.sqrt(inverse)
        lower, info = lapack.spotrf(scaled @ scaled.T, lower=1, overwrite_a=1)
        if info != 0:
            return None

        def apply(rhs: np.ndarray) -> np.ndarray:
            part = (rhs.astype(np.float32) @ self.vectors) * inverse
            if len(left):
                part -= (lapack.spotrs(lower, q @ part, lower=1)[0] @ q) * inverse
            a = (self.vectors @ part).astype(float)
            a[left] = 0
            return a

        return _refined(self.k, y, active, ridge, apply)


def _cholesky(m: np.ndarray, at: np.ndarray, ridge: float) -> np.ndarray:
    """Lower factor of m[at, at] + ridge, m symmetric."""
    block = m[at].take(at, axis=1, mode="clip")  # np.ix_ takes half as long again
    block[np.diag_indices_from(block)] += ridge
    # A symmetric matrix is the same in Fortran's order, which LAPACK needs: no copy is made.
    lower, info = lapack.dpotrf(block.T, lower=1, overwrite_a=1)
    if info != 0:
        raise np.linalg.LinAlgError("Gram matrix of the features is not positive semidefinite")
    return lower


class Factor:
    """Cholesky factor of K_AA + ridge; solves for a slightly other A and a smaller ridge, too."""

    def __init__(self, k: np.ndarray, active: np.ndarray, ridge: float) -> None:
        self.active, self.ridge = active, ridge
        self.at = np.flatnonzero(active)
        self.lower = _cholesky(k, self.at, ridge)
        # Bounds the least eigenvalue from above.
        self.smallest = float(self.lower.diagonal().min(initial=np.inf)) ** 2

    def solve(
        self,
        k: np.ndarray,
        y: np.ndarray,
        active: np.ndarray,
        ridge: float,
        near: Near | None = None,
    ) -> Solution | None:
        """a (N,) with (K_AA + ridge) a_A = y_A, 0 elsewhere, and K a (N,).

        None where a new factor is cheaper or more exact. `near`: another ridge's solution, same A.
        """
        if ridge != self.ridge and self.ridge > 0.05 * self.smallest:
            return None
        if (apply := self._without(k, active)) is None:
            return None
        if ridge == self.ridge and (active == self.active).all():
            a = apply(y)
            return a, times(k, a), True
        return _refined(k, y, active, ridge, apply, near)

    def nearly(
        self, k: np.ndarray, y: np.ndarray, active: np.ndarray, ridge: float, near: Near
    ) -> Solution | None:
        """As `solve`, to about two digits, starting from another ridge's solution for the same A.

        Conjugate gradients with this factor as preconditioner. None where A differs too much.
        """
        if (apply := self._without(k, active)) is None:
            return None
        (a, f), p, before = near, np.zeros(len(k)), np.inf
        residual = np.where(active, y - f - ridge * a, 0.0)
        for _ in range(CG_STEPS):
            z = apply(residual)
            size = float(residual @ z)
            if size <= 0:  # it is exact, as far as fp64 goes
                break
            p = z + size / before * p
            kp, before = times(k, p), size
            t = size / float(p @ kp + ridge * (p @ p))
            a, f = a + t * p, f + t * kp
            residual = residual - t * np.where(active, kp + ridge * p, 0.0)
        return a, f, False

    def _without(self, k: np.ndarray, active: np.ndarray) -> Apply | None:
        """Solver for another A; None where a new factor is cheaper."""
        left = np.flatnonzero(self.active & ~active)
        entered = np.flatnonzero(active & ~self.active)
        if len(left) + len(entered) > len(self.at) // 8:
            return None
        return self._bordered(k, left, entered)

    def _bordered(self, k: np.ndarray, left: np.ndarray, entered: np.ndarray) -> Apply:
        """Solver for A without `left` and with `entered`: (N,) right-hand sides to (N,) solutions.

        Entered rows border the matrix; a row that left is held at 0 by a multiplier, a border e_j:
            [M_AA  U] [a]   [y]      U = (K_A,entered  e_left),
            [Uᵀ    D] [v] = [·]      D = diag(M_entered, 0)
        """
        n, m = len(entered), len(entered) + len(left)
        if m:
            u = np.zeros((len(self.at), m), order="F")
            u[:, :n] = k[np.ix_(self.at, entered)]
            u[np.searchsorted(self.at, left), np.arange(n, m)] = 1
            w = lapack.dtrtrs(self.lower, u, lower=1)[0]
            schur = -w.T @ w
            schur[:n, :n] += k[np.ix_(entered, entered)] + self.ridge * np.eye(n)
            lu, pivots, _ = lapack.dgetrf(schur)

        def apply(rhs: np.ndarray) -> np.ndarray:
            a = np.zeros(len(k))
            g = lapack.dtrtrs(self.lower, rhs[self.at], lower=1)[0]
            if m:
                v = np.concatenate([rhs[entered], np.zeros(m - n)]) - w.T @ g
                v = lapack.dgetrs(lu, pivots, v)[0]
                g = g - w @ v
                a[entered] = v[:n]
            a[self.at] = lapack.dtrtrs(self.lower, g, lower=1, trans=1)[0]
            a[left] = 0
            return a

        return apply


def _refined(
    k: np.ndarray,
    y: np.ndarray,
    active: np.ndarray,
    ridge: float,
    apply: Apply,
    near: Near | None = None,
) -> Solution | None:
    """Refines a nearly exact inverse's solution to the rounding of K a; None where that fails.

    Borders of near-singular systems cancel, and a factor's ridge may differ from this one by little
    beside K's eigenvalues.
    """
    a = near[0] if near else apply(y)
    f = near[1] if near else times(k, a)
    size = np.inf
    rounding = EPS * math.sqrt(len(k)) * (float(k.diagonal().max()) + ridge)
    for _ in range(8):
        residual = np.where(active, y - f - ridge * a, 0.0)
        before, size = size, float(np.linalg.norm(residual))
        length = float(np.linalg.norm(a))
        if size <= (4 * rounding + EXACT * ridge) * length:
            return a, f, True
        if size <= ROUGH * ridge * length and ((y * f < 1) != active).any():
            return a, f, False
        if size > 0.2 * before:
            return None
        a = a + apply(residual)
        f = times(k, a)
    return None
