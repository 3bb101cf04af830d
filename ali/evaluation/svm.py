"""The L2-SVM of §4.4: a whole path of penalties C for all classes, exactly, in seconds.

One-against-rest linear machines with squared hinge and L2 penalty, as LIBLINEAR poses them,
x_i with a 1 appended, so that the intercept is penalised too:

    min_w ½‖w‖² + C Σ_i max(0, 1 − y_i w·x_i)²

The objective is smooth and piecewise quadratic. On a fixed set A of rows inside the margin its
minimum is a linear system, and Newton's method is to solve it, see which rows are inside now, and
repeat until the set stays (Keerthi & DeCoste 2005, Chapelle 2007). What makes the path cheap:

- the system is written in w = Σ a_i x_i, that is in the rows' Gram matrix K:
  (K_AA + I/2C) a_A = y_A, a = 0 elsewhere. That is the same problem, rotated to the span of the
  rows;
- a Cholesky factor outlives its system: a few rows that enter or leave A border it, and a smaller
  1/2C, once that is far under K's eigenvalues, costs a step or two of iterative refinement;
- with many more rows than features the system stays in w, and rows that enter or leave A are added
  to X_AᵀX_A or taken from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import lapack
from threadpoolctl import threadpool_limits

from ali.errors import UserError

GRID = np.exp(np.linspace(-20, 20, 50))  # the penalties C of the authors' code
MAX_STEPS = 60  # Newton steps for one C; a handful is usual
STRIDE = 4.0  # from one ridge to the next, on the way to one that is not reached at once
SMALL = 1e-11  # relative size at which refinement has converged
TALL = 3  # rows a feature from which the system is solved in w: measured, K is faster up to there


@dataclass
class Machines:
    """One-against-rest machines for each C of a path.

    Attributes:
        cs: (P,) penalties.
        classes: (K,) the labels they tell apart.
        w: (P, K, D) fp64 weights.
        b: (P, K) fp64 intercepts.
    """

    cs: np.ndarray
    classes: np.ndarray
    w: np.ndarray
    b: np.ndarray

    def errors(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Fraction of rows of x (N, D) that get another label than y (N,), for each C: (P,)."""
        p, k, d = self.w.shape
        w = torch.from_numpy(self.w.reshape(p * k, d).astype(np.float32)).T
        b = torch.from_numpy(self.b.reshape(p * k).astype(np.float32))
        wrong = np.zeros(p)
        for lo in range(0, len(x), 2000):
            rows = slice(lo, lo + 2000)
            scores = torch.addmm(b, torch.from_numpy(x[rows]).float(), w)
            best = self.classes[scores.reshape(-1, p, k).argmax(2).numpy()]  # (rows, P)
            wrong += (best != y[rows, None]).sum(0)
        return wrong / len(x)


def fit(x: np.ndarray, y: np.ndarray, cs: Sequence[float] | np.ndarray = GRID) -> Machines:
    """Machines for every penalty of cs.

    Args:
        x: (N, D) features, not standardised.
        y: (N,) integer labels; the classes are those that occur.
        cs: (P,) penalties, ascending (each starts from the one before).

    Raises FloatingPointError on a non-finite feature, UserError where all labels are equal.

    A C so large that 1/2C is lost in the rounding of K counts as the largest C that is not.
    """
    classes = np.unique(y)
    if len(classes) < 2:
        raise UserError("the labelled images are all of one class: ask for more --labels")
    if not np.isfinite(x).all():
        raise FloatingPointError("features are not finite")
    rows = np.concatenate([x, np.ones((len(x), 1))], 1, dtype=np.float64)  # (N, D+1)
    problem = _Kernel(rows) if rows.shape[0] <= TALL * rows.shape[1] else _Primal(rows)
    signs = np.where(y == classes[:, None], 1.0, -1.0)  # (K, N)
    starts = [problem.start() for _ in classes]
    coefficients = []
    for c in cs:
        # One BLAS thread: more gain little on these sizes, and where other trials keep the cores
        # busy OpenBLAS's spinning threads make a factorisation 20 times slower.
        with threadpool_limits(1, "blas"):
            for k, sign in enumerate(signs):
                starts[k] = _minimum(problem, sign, max(1 / (2 * c), problem.floor), starts[k])
                coefficients.append(starts[k].coefficients)
    weights = problem.weights(np.stack(coefficients)).reshape(len(cs), len(classes), -1)
    return Machines(np.asarray(cs), classes, weights[..., :-1], weights[..., -1])


@dataclass
class _Start:
    """Where a class's path stands: the minimum at the last C, and what may be used again."""

    coefficients: np.ndarray  # a (N,) of _Kernel or w (D+1,) of _Primal
    f: np.ndarray  # (N,) outputs w·x_i
    active: np.ndarray  # (N,) bool, rows inside the margin
    factor: _Factor | None = None  # of _Kernel
    summed: np.ndarray | None = None  # (N,) bool, the rows in gram
    gram: np.ndarray | None = None  # X_AᵀX_A (D+1, D+1) of _Primal


def _minimum(problem: _Kernel | _Primal, y: np.ndarray, ridge: float, start: _Start) -> _Start:
    """The minimum of ½ ridge ‖w‖² + ½ Σ max(0, 1 − y f)², ridge = 1/2C, on the way from start.

    From w = 0 a small ridge can take Newton's method thousands of steps where the classes overlap,
    but a handful from a neighbour: it is then reached by way of larger ones.
    """
    if not _newton(problem, y, ridge, start):
        start = problem.start()
        steps = max(0, math.ceil(math.log(problem.scale / ridge, STRIDE)))
        for k in range(steps, -1, -1):
            _newton(problem, y, ridge * STRIDE**k, start)
    return start


def _newton(problem: _Kernel | _Primal, y: np.ndarray, ridge: float, start: _Start) -> bool:
    """Moves start to the minimum; False where MAX_STEPS do not reach it."""
    active, best = start.active, np.inf
    for _ in range(MAX_STEPS):
        new, f = problem.solve(y, active, ridge, start)
        inside = problem.inside(y, active, new, f)
        if (inside == active).all():
            start.coefficients, start.f, start.active = new, f, active
            return True
        # Exact minimum along the Newton direction: without it the sets may cycle.
        move, df = new - start.coefficients, f - start.f
        slope = problem.inner(start.coefficients, start.f, move, df)
        curve = problem.inner(move, df, move, df)
        t = _line_minimum(ridge * slope, ridge * curve, 1 - y * start.f, y * df)
        start.coefficients = start.coefficients + t * move
        start.f = start.f + t * df
        active = inside if t == 1 else y * start.f < 1
        start.active = active
        hinge = np.maximum(0, 1 - y * start.f)
        norm = problem.inner(start.coefficients, start.f, start.coefficients, start.f)
        objective = ridge * norm + hinge @ hinge
        if objective >= best * (1 - 1e-15):  # rows on the margin to rounding: nothing left to gain
            return True
        best = objective
    return False


def _line_minimum(slope: float, curve: float, m: np.ndarray, g: np.ndarray) -> float:
    """t in (0, 1] with slope + t curve − Σ max(0, m − t g) g = 0, or 1 where it stays negative.

    Args: slope, curve of the quadratic part; m (N,) margins left 1 − y f; g (N,) their change.
    """

    def derivative(t: float) -> float:
        return float(slope + t * curve - np.maximum(0, m - t * g) @ g)

    if derivative(1.0) <= 1e-12 * abs(derivative(0.0)):
        return 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        kinks = m / g
    kinks = np.sort(kinks[(kinks > 0) & (kinks < 1)])
    ts = np.concatenate([[0.0], kinks, [1.0]])
    lo, hi = 0, len(ts) - 1  # the derivative rises, linearly between kinks
    while hi - lo > 1:
        mid = (lo + hi) // 2
        lo, hi = (mid, hi) if derivative(ts[mid]) <= 0 else (lo, mid)
    at_lo, at_hi = derivative(ts[lo]), derivative(ts[hi])
    return float(ts[lo] + (ts[hi] - ts[lo]) * -at_lo / (at_hi - at_lo))


class _Kernel:
    """The problem in the rows' coefficients, w = Σ a_i x_i."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows
        self.k = _product(rows, rows.T)  # (N, N)
        self.scale = float(self.k.diagonal().max())
        # A smaller ridge is lost in K's rounding.
        self.floor = np.finfo(float).eps * np.trace(self.k)
        self.shared: _Factor | None = None  # of all rows: every class begins there, at small C

    def start(self) -> _Start:
        n = len(self.k)
        return _Start(np.zeros(n), np.zeros(n), np.ones(n, bool))

    def weights(self, a: np.ndarray) -> np.ndarray:
        return _product(a, self.rows)

    def inner(self, a: np.ndarray, f: np.ndarray, a2: np.ndarray, f2: np.ndarray) -> float:
        return float(a @ f2)  # aᵀKa'

    def inside(self, y: np.ndarray, active: np.ndarray, a: np.ndarray, f: np.ndarray) -> np.ndarray:
        # On A, a_i = 2C (y_i − f_i): its sign says what y f < 1 says, and does not cancel.
        return np.where(active, y * a > 0, y * f < 1 - 1e-12)

    def solve(
        self, y: np.ndarray, active: np.ndarray, ridge: float, start: _Start
    ) -> tuple[np.ndarray, np.ndarray]:
        """(K_AA + ridge) a_A = y_A; returns a (N,) and f = K a."""
        if start.factor is not None:
            a = start.factor.solve(self.k, y, active, ridge)
            if a is not None:
                return a, self.k @ a
        if active.all():
            if self.shared is None or self.shared.ridge != ridge:
                self.shared = _Factor(self.k, active, ridge)
            start.factor = self.shared
        else:
            start.factor = _Factor(self.k, active, ridge)
        a = start.factor.solve(self.k, y, active, ridge)
        assert a is not None  # the factor's own system
        return a, self.k @ a


class _Primal:
    """The problem in w itself: for many more rows than features."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows
        squares = np.einsum("nd,nd->n", rows, rows)
        self.scale = float(squares.max())
        self.floor = np.finfo(float).eps * float(squares.sum())

    def start(self) -> _Start:
        n, d = self.rows.shape
        return _Start(np.zeros(d), np.zeros(n), np.ones(n, bool))

    def weights(self, w: np.ndarray) -> np.ndarray:
        return w

    def inner(self, w: np.ndarray, f: np.ndarray, w2: np.ndarray, f2: np.ndarray) -> float:
        return float(w @ w2)

    def inside(self, y: np.ndarray, active: np.ndarray, w: np.ndarray, f: np.ndarray) -> np.ndarray:
        return y * f < 1

    def solve(
        self, y: np.ndarray, active: np.ndarray, ridge: float, start: _Start
    ) -> tuple[np.ndarray, np.ndarray]:
        """(X_AᵀX_A + ridge) w = X_Aᵀ y_A, in the smaller of its forms; returns w and f = X w."""
        x = self.rows[active]
        if len(x) <= x.shape[1]:
            w = x.T @ _solve(_product(x, x.T), y[active], ridge)
        else:
            w = _solve(self._gram(active, start), x.T @ y[active], ridge)
        return w, self.rows @ w

    def _gram(self, active: np.ndarray, start: _Start) -> np.ndarray:
        """X_AᵀX_A, from the one that start keeps where few rows have changed sides."""
        changed = active if start.summed is None else active ^ start.summed
        if 2 * changed.sum() > active.sum():
            changed, start.gram = active, None
        x = self.rows[changed]
        change = _product((x * np.where(active[changed], 1.0, -1.0)[:, None]).T, x)
        start.summed = active
        start.gram = change if start.gram is None else start.gram + change
        return start.gram


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return torch.mm(torch.from_numpy(a), torch.from_numpy(b)).numpy()


def _solve(m: np.ndarray, rhs: np.ndarray, ridge: float) -> np.ndarray:
    return lapack.dpotrs(_cholesky(m, np.arange(len(m)), ridge), rhs, lower=1)[0]


def _cholesky(m: np.ndarray, at: np.ndarray, ridge: float) -> np.ndarray:
    """Lower factor of m[at, at] + ridge, m symmetric.

    Equal rows can leave m singular to rounding: then the ridge grows to that size.
    """
    for attempt in range(8):
        block = m[at][:, at]  # in two steps, which is faster than np.ix_
        total = np.trace(block)
        block[np.diag_indices_from(block)] += ridge
        # In Fortran's order, as LAPACK wants it, a symmetric matrix is itself: no copy is made.
        lower, info = lapack.dpotrf(block.T, lower=1, overwrite_a=1)
        if info == 0:
            return lower
        ridge = max(ridge, 16.0**attempt * np.finfo(float).eps * total)
    raise np.linalg.LinAlgError("Gram matrix of the features is not positive semidefinite")


class _Factor:
    """Cholesky factor of K_AA + ridge; solves for a slightly other A and a smaller ridge, too."""

    def __init__(self, k: np.ndarray, active: np.ndarray, ridge: float) -> None:
        self.active, self.ridge = active, ridge
        self.at = np.flatnonzero(active)
        self.lower = _cholesky(k, self.at, ridge)
        self.smallest = (
            float(self.lower.diagonal().min(initial=np.inf)) ** 2
        )  # bounds K's least from above

    def solve(
        self, k: np.ndarray, y: np.ndarray, active: np.ndarray, ridge: float
    ) -> np.ndarray | None:
        """a (N,) with (K_AA + ridge) a_A = y_A, 0 elsewhere; None where a new factor is cheaper."""
        left = np.flatnonzero(self.active & ~active)
        entered = np.flatnonzero(active & ~self.active)
        if len(left) + len(entered) > len(self.at) // 8:
            return None
        if ridge != self.ridge and self.ridge > 0.05 * self.smallest:
            return None
        apply = self._bordered(k, left, entered)
        a = apply(y)
        if ridge == self.ridge:
            return a
        # Refinement: the factor's ridge differs from this one by little beside K's eigenvalues.
        size = np.inf
        residual = (self.ridge - ridge) * a
        for _ in range(8):
            step = apply(np.where(active, residual, 0.0))
            a, before, size = a + step, size, float(np.linalg.norm(step))
            if size <= SMALL * np.linalg.norm(a):
                return a
            if size > 0.2 * before:
                return None
            residual = y - k @ a - ridge * a
        return None

    def _bordered(
        self, k: np.ndarray, left: np.ndarray, entered: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
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
            inverse = np.linalg.inv(schur)

        def apply(rhs: np.ndarray) -> np.ndarray:
            a = np.zeros(len(k))
            g = lapack.dtrtrs(self.lower, rhs[self.at], lower=1)[0]
            if m:
                v = inverse @ (np.concatenate([rhs[entered], np.zeros(m - n)]) - w.T @ g)
                g = g - w @ v
                a[entered] = v[:n]
            a[self.at] = lapack.dtrtrs(self.lower, g, lower=1, trans=1)[0]
            a[left] = 0
            return a

        return apply
