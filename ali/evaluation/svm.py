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
- K's eigenvectors solve it for every C while nearly all rows are in A;
- a Cholesky factor is reused: a few rows that enter or leave A border it; a smaller 1/2C costs a
  step or two of iterative refinement once it is far below K's eigenvalues, and before that two of
  conjugate gradients, to see which rows enter and leave (ali.evaluation.systems);
- with many more rows than features the system stays in w, and rows that enter or leave A are added
  to X_AᵀX_A or taken from it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from ali.errors import UserError
from ali.evaluation.systems import EPS, Factor, Spectrum, least_eigenvalue, solve, times

GRID = np.exp(np.linspace(-20, 20, 50))  # the penalties C of the authors' code
MAX_STEPS = 60  # Newton steps for one C; a handful is usual
STRIDE = 4.0  # from one ridge to the next, on the way to one that is not reached at once
CLOSE = 1e-6  # relative distance of w from the minimum at which Newton's method has converged
REGULAR = 1e4 * EPS  # least eigenvalue, in traces of K, of a system that is solved to four digits
SPECTRUM_PAYS = 10  # penalties from which the Gram matrix's eigenvectors are worth their time
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

    The rows' Gram matrix K is known up to its rounding, ε tr K. Where its least eigenvalue λ is not
    far above that (equal rows, more rows than features), large C do not determine the weights of
    overlapping classes: every C above 1 / 2(10⁴ ε tr K − λ) counts as that one. Where λ is at least
    10⁴ ε tr K every C has its minimum.
    """
    classes = np.unique(y)
    if len(classes) < 2:
        raise UserError("the labelled images are all of one class: ask for more --labels")
    if not np.isfinite(x).all():
        raise FloatingPointError("features are not finite")
    rows = np.concatenate([x, np.ones((len(x), 1))], 1, dtype=np.float64)  # (N, D+1)
    signs = np.where(y == classes[:, None], 1.0, -1.0)  # (K, N)
    coefficients = []
    # One BLAS thread: more gain little on these sizes, and where other trials keep the cores busy
    # OpenBLAS's spinning threads make a factorisation 20 times slower.
    with threadpool_limits(1, "blas"):
        tall = rows.shape[0] > TALL * rows.shape[1]
        problem = _Primal(rows) if tall else _Kernel(rows, len(cs))
        starts = [problem.start() for _ in classes]
        for c in cs:
            ridge = 1 / (2 * c)
            ridge = ridge if ridge > problem.regular else max(ridge, problem.floor)
            for k, sign in enumerate(signs):
                starts[k] = _minimum(problem, sign, ridge, starts[k])
                coefficients.append(starts[k].coefficients)
    weights = problem.weights(np.stack(coefficients)).reshape(len(cs), len(classes), -1)
    return Machines(np.asarray(cs), classes, weights[..., :-1], weights[..., -1])


@dataclass
class _Start:
    """A class's state on its path: the minimum at the last C, and what can be reused."""

    coefficients: np.ndarray  # a (N,) of _Kernel or w (D+1,) of _Primal
    violation: np.ndarray  # (N,) 1 − y f, f = w·x_i: positive inside the margin
    factor: Factor | None = None  # of _Kernel
    summed: np.ndarray | None = None  # (N,) bool, the rows in gram
    gram: np.ndarray | None = None  # X_AᵀX_A (D+1, D+1) of _Primal


def _minimum(problem: _Kernel | _Primal, y: np.ndarray, ridge: float, start: _Start) -> _Start:
    """The minimum of ½ ridge ‖w‖² + ½ Σ max(0, 1 − y f)², ridge = 1/2C, continuing from start.

    For a small ridge and overlapping classes, Newton's method can need thousands of steps from
    w = 0, but a handful from a similar ridge: then it goes through larger ridges. With equal rows
    and the least ridge, even that may miss the tolerance by rounding: the last step is kept.
    """
    if not _newton(problem, y, ridge, start):
        start = problem.start()
        steps = max(0, math.ceil(math.log(problem.scale / ridge, STRIDE)))
        for k in range(steps, -1, -1):
            _newton(problem, y, ridge * STRIDE**k, start)
    return start


def _newton(problem: _Kernel | _Primal, y: np.ndarray, ridge: float, start: _Start) -> bool:
    """Moves start to the minimum; False where that is not reached.

    A stalled objective does not show convergence: with a large C a row just outside the margin can
    end a step after 1e-13 of its length, and the next step, with that row in A, goes far. At the
    minimum w = v := Σ max(0, 1 − y f) y x / ridge, and any w is at most ‖w − v‖ away from it.
    """
    for step in range(MAX_STEPS):
        active = start.violation > 0
        new, violation, exact = problem.solve(y, active, ridge, start, step == 0)
        if exact and ((violation > 0) == active).all():
            start.coefficients, start.violation = new, violation
            return True
        w, move, change = start.coefficients, new - start.coefficients, violation - start.violation
        excess = problem.excess(y, start, ridge)  # w − v
        fall = -ridge * problem.inner(excess, move, -y * change)
        close = CLOSE**2 * problem.inner(w, w, y * (1 - start.violation))  # of ‖w − v‖²
        if fall <= 0 and not exact:
            continue
        if fall <= max(0.0, ridge * close):  # fall ≤ ridge ‖w − v‖²
            reached = problem.square(excess) <= close
            if reached or fall <= 0:
                return reached
        # Exact minimum along the Newton direction: without it the sets may cycle.
        curve = ridge * problem.inner(move, move, -y * change)
        t = _line_minimum(fall, curve, start.violation, change)
        start.coefficients = w + t * move
        start.violation = violation if t == 1 else start.violation + t * change
    return False


def _line_minimum(fall: float, curve: float, m: np.ndarray, g: np.ndarray) -> float:
    """t in (0, 1] where the objective's derivative is 0, or 1 where it stays negative.

    Args: fall, minus the derivative at 0; curve of the quadratic part; m (N,) violations; g (N,)
    their change.
    """

    def derivative(t: float) -> float:
        return float(t * curve + (np.maximum(0, m + t * g) - np.maximum(0, m)) @ g - fall)

    if derivative(1.0) <= 1e-12 * fall:
        return 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        kinks = -m / g
    kinks = np.sort(kinks[(kinks > 0) & (kinks < 1)])
    ts = np.concatenate([[0.0], kinks, [1.0]])
    lo, hi = 0, len(ts) - 1  # the derivative rises, linearly between kinks
    while hi - lo > 1:
        mid = (lo + hi) // 2
        lo, hi = (mid, hi) if derivative(ts[mid]) <= 0 else (lo, mid)
    at_lo, at_hi = derivative(ts[lo]), derivative(ts[hi])
    return float(ts[lo] + (ts[hi] - ts[lo]) * -at_lo / (at_hi - at_lo))


def _violations(
    y: np.ndarray, active: np.ndarray, a: np.ndarray, f: np.ndarray, ridge: float, scale: float
) -> np.ndarray:
    """1 − y f (N,) of w = Σ_A a_i x_i with (K_AA + ridge) a_A = y_A; scale is K's largest element.

    On A it is ridge y a, which does not cancel; elsewhere the rounding of f is deducted.
    """
    return np.where(active, ridge * y * a, 1 - 4 * EPS * scale * np.linalg.norm(a) - y * f)


class _Kernel:
    """The problem in the rows' coefficients, w = Σ a_i x_i."""

    def __init__(self, rows: np.ndarray, ridges: int = 1) -> None:
        self.rows = rows
        self.k = rows @ rows.T  # (N, N)
        self.spectrum = Spectrum(self.k) if ridges >= SPECTRUM_PAYS else None
        self.scale = float(self.k.diagonal().max())
        self.regular = REGULAR * float(np.trace(self.k))  # a ridge that needs no eigenvalue
        self.shared: Factor | None = None  # of all rows: every class begins there, at small C

    @functools.cached_property
    def floor(self) -> float:
        return max(0.0, self.regular - least_eigenvalue(self.k))

    def start(self) -> _Start:
        n = len(self.k)
        return _Start(np.zeros(n), np.ones(n))

    def weights(self, a: np.ndarray) -> np.ndarray:
        return _product(a, self.rows)

    def inner(self, a: np.ndarray, a2: np.ndarray, f2: np.ndarray) -> float:
        return float(a @ f2)  # aᵀKa'

    def square(self, a: np.ndarray) -> float:
        return float(a @ times(self.k, a))

    def excess(self, y: np.ndarray, start: _Start, ridge: float) -> np.ndarray:
        return start.coefficients - y * np.maximum(0, start.violation) / ridge

    def solve(
        self, y: np.ndarray, active: np.ndarray, ridge: float, start: _Start, first: bool
    ) -> tuple[np.ndarray, np.ndarray, bool]:
        """(K_AA + ridge) a_A = y_A: a (N,); 1 − y f, f = K a; whether that is the solution.

        It may be approximate if the rows inside the margin differ from A, or if `first` (the first
        step at a new ridge), to save the factor of a set that is about to change.
        """
        found = self.spectrum and self.spectrum.solve(y, active, ridge)
        if not found and start.factor:
            same = ((start.coefficients != 0) == active).all()
            near = (start.coefficients, y * (1 - start.violation)) if same else None
            found = start.factor.solve(self.k, y, active, ridge, near)
            if not found and near and first:
                found = start.factor.nearly(self.k, y, active, ridge, near)
        if not found:
            if not active.all():
                start.factor = Factor(self.k, active, ridge)
            else:
                if self.shared is None or self.shared.ridge != ridge:
                    self.shared = Factor(self.k, active, ridge)
                start.factor = self.shared
            found = start.factor.solve(self.k, y, active, ridge)
            assert found  # the factor's own system
        a, f, exact = found
        return a, _violations(y, active, a, f, ridge, self.scale) if exact else 1 - y * f, exact


class _Primal:
    """The problem in w itself: for many more rows than features."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows
        squares = np.einsum("nd,nd->n", rows, rows)
        self.scale = float(squares.max())
        self.floor = self.regular = REGULAR * float(squares.sum())

    def start(self) -> _Start:
        n, d = self.rows.shape
        return _Start(np.zeros(d), np.ones(n))

    def weights(self, w: np.ndarray) -> np.ndarray:
        return w

    def inner(self, w: np.ndarray, w2: np.ndarray, f2: np.ndarray) -> float:
        return float(w @ w2)

    def square(self, w: np.ndarray) -> float:
        return float(w @ w)

    def excess(self, y: np.ndarray, start: _Start, ridge: float) -> np.ndarray:
        return start.coefficients - (y * np.maximum(0, start.violation)) @ self.rows / ridge

    def solve(
        self, y: np.ndarray, active: np.ndarray, ridge: float, start: _Start, first: bool
    ) -> tuple[np.ndarray, np.ndarray, bool]:
        """(X_AᵀX_A + ridge) w = X_Aᵀ y_A, in the smaller of its forms; returns w and 1 − y f."""
        x = self.rows[active]
        if len(x) <= x.shape[1]:
            a = np.zeros(len(y))
            a[active] = solve(_product(x, x.T), y[active], ridge)
            w = x.T @ a[active]
            return w, _violations(y, active, a, self.rows @ w, ridge, self.scale), True
        # Relative to start, so that each step corrects the rounding of the one before.
        pull = -ridge * self.excess(y, start, ridge)
        w = start.coefficients + solve(self._gram(active, start), pull, ridge)
        return w, 1 - y * (self.rows @ w), True

    def _gram(self, active: np.ndarray, start: _Start) -> np.ndarray:
        """X_AᵀX_A, updated from start's if few rows have entered or left A."""
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
