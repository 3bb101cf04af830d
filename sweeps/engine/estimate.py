"""What to expect of a configuration, from few noisy runs of many: a hierarchical Bayes estimate.

Means of configurations have Student's t distribution with two degrees of freedom, whose heavy tails
let one be far better than all others: a normal one would draw it back (benchmarks/README.md
measures that). The runs of a configuration are normally distributed around its mean, with the same
variance between seeds for all configurations. Centre and scale of the t distribution are averaged
over a grid, with the likelihood of the runs as weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LUCK = 2 / 3  # share of the variance between runs of different configurations that seeds make, …
KNOWN_AFTER = 4  # … which counts as much as so many repetitions
CENTRES = np.linspace(0.25, 0.75, 5)  # of the t distribution: quantiles of what was seen
SCALES = np.geomspace(0.1, 2.0, 12)  # of it, in standard deviations of what was seen
POINTS, REACH = 1001, 15.0  # of the grid of means; how far it goes, in the same
FAR = 5.0  # how far a run counts as from its configuration's mean, at most, in the same


@dataclass(frozen=True)
class Estimate:
    """A configuration's mean objective, estimated from a sweep's runs.

    Attributes:
        mean: its estimate.
        std: its uncertainty.
        freedom: degrees of freedom of the variance between seeds: runs beyond the first, over all
            configurations.
        maximize: whether the higher mean is the better one.
    """

    mean: float
    std: float
    freedom: int
    maximize: bool = False

    @property
    def loss(self) -> float:
        """The mean, signed so that less is better."""
        return -self.mean if self.maximize else self.mean

    @property
    def interval(self) -> tuple[float, float]:
        """95 % credible interval of the mean (Student's t); infinite if nothing has run twice."""
        from scipy.stats import t

        if not self.freedom:
            return float("-inf"), float("inf")
        half = t.ppf(0.975, self.freedom) * self.std
        return self.mean - half, self.mean + half

    def beats(self, other: Estimate) -> float:
        """Probability that its mean is the better one; 0.5 where nothing is known."""
        from scipy.stats import t

        if not self.freedom:
            return 0.5
        apart = (self.std**2 + other.std**2) ** 0.5
        if not apart:
            return 0.5 + 0.5 * float(np.sign(other.loss - self.loss))
        return float(t.cdf((other.loss - self.loss) / apart, self.freedom))


def estimate(runs: Mapping[int, Sequence[float]], maximize: bool = False) -> dict[int, Estimate]:
    """The mean of each configuration, from the objective of its runs, one at least, in order.

    `runs` is by any key. The first run of each is one of the search's, which drew it; those tell
    how much configurations and seeds together vary.
    """
    if not runs:
        return {}
    sign = -1 if maximize else 1  # so that maximizing is minimizing the negative, to the bit
    runs = {key: [sign * value for value in values] for key, values in runs.items()}
    count = np.array([len(values) for values in runs.values()])
    mean = np.array([np.mean(values) for values in runs.values()])
    freedom = int((count - 1).sum())
    std = np.sqrt(_variances(runs, freedom) / count)
    far = np.maximum(np.abs(mean - np.median(mean)), std) > REACH * _std(mean)  # unlike any other
    if len(runs) > 1 and std.min() > 0:
        mean[~far], std[~far] = _posterior(mean[~far], std[~far])
    return {
        key: Estimate(sign * float(m), float(s), freedom, maximize)
        for key, m, s in zip(runs, mean, std, strict=True)
    }


def _variances(runs: Mapping[int, Sequence[float]], freedom: int) -> np.ndarray:
    """Between seeds (n,): from repetitions, and a guess while they are few.

    The same for all, but for configurations with a run that is far off: what it adds counts for
    them alone, as it would drown all others.
    """
    first = [values[0] for values in runs.values()]
    apart = [np.subtract(values, np.mean(values)) ** 2 for values in runs.values()]
    if len(runs) == 1:
        return apart[0].sum(keepdims=True) / (freedom or 1)
    far = (FAR * _std(first)) ** 2 or np.inf
    squares = np.array([np.minimum(each, far).sum() for each in apart])
    own = np.array([each.sum() for each in apart]) - squares
    guess = LUCK * _std(first) ** 2
    return (KNOWN_AFTER * guess + squares.sum() + own) / (KNOWN_AFTER + freedom)


def _std(values: Sequence[float] | np.ndarray) -> float:
    """Standard deviation, from the quartiles, since a few values may be far away."""
    low, high = np.quantile(values, [0.25, 0.75])
    return float((high - low) / 1.349 or np.std(values))


def _posterior(mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each true mean, from observed ones (n,) and their errors."""
    grid = np.linspace((mean - 4 * std).min(), (mean + 4 * std).max(), POINTS)
    std = np.maximum(std, grid[1] - grid[0])
    likelihood = np.exp(-0.5 * ((grid - mean[:, None]) / std[:, None]) ** 2)  # (n, grid)
    centre = np.quantile(mean, CENTRES)[:, None, None]
    scale = (_std(mean) or std.max()) * SCALES[:, None]
    prior = (2 + ((grid - centre) / scale) ** 2) ** -1.5 / scale  # Student's t₂, up to a factor
    prior = prior.reshape(-1, POINTS)  # (priors, grid)
    evidence = likelihood @ prior.T  # (n, priors)
    weight = np.log(evidence).sum(axis=0)
    weight = np.exp(weight - weight.max())
    weight /= weight.sum()
    first, second = ((likelihood * grid**k) @ prior.T / evidence @ weight for k in (1, 2))
    return first, np.sqrt(np.maximum(second - first**2, 0.0))
