"""Statistics of a table of learning curves: noise, what early epochs predict, where runs fail."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import pairwise, permutations

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from ali.metrics import (
    COLLAPSED,
    EVAL_SECONDS,
    IMAGES_PER_SECOND,
    TRAIN_SECONDS,
)
from benchmarks.blackbox import Blackbox
from sweeps import Objective
from sweeps.engine.confirmation import LAST_PART

WIDTH = 120  # characters of a printed table
PARTS = (1 / 9, 2 / 9, 1 / 3, 1 / 2, 2 / 3, 1)  # of the budget, after which measures are shown
# Objectives of a table that say nothing of the networks
NOT_MEASURED = {"diverged", "cpu_seconds", EVAL_SECONDS, TRAIN_SECONDS, IMAGES_PER_SECOND}


def describe(
    table: Blackbox, name: str, others: Mapping[str, Blackbox], more: Objective | None = None
) -> None:
    """Prints the statistics of a table. Runs that are missing are left out.

    `others`: further tables, by name; those with the same first configurations are compared.
    `more`: a measure that is arithmetic of the table's, whose predictions are shown, too.
    """
    console = Console(highlight=False, width=WIDTH)
    objective = table.metadata["objective"]
    values = table.curves(objective)
    whole = np.isfinite(values[..., -1])
    console.print(
        f"{name}: {len(values)} configurations, {table.metadata['runs']} runs of {values.shape[2]} "
        f"epochs, {int((~whole & np.isfinite(table.curves('diverged')[..., -1])).sum())} diverged"
    )
    console.print(noise(values, objective))
    console.print(predictors(table, values, more))
    console.print(regions(table, values))
    for other, beside in others.items():
        if told := agreement(table, beside):
            console.print(f"beside {other}: {told}")


def agreement(table: Blackbox, other: Blackbox) -> str:
    """How well the order of a table predicts another's, where their first configurations are the
    same: those of a narrower network, for example. Empty where they are not."""
    count = min(len(table.hyperparameters), len(other.hyperparameters))
    one, two = (each.hyperparameters.iloc[:count] for each in (table, other))
    objective = table.metadata["objective"]
    if list(one) != list(two) or objective not in other.names or not one.equals(two):
        return ""
    ends = [each.curves(objective)[:count, :, -1] for each in (table, other)]
    means = [np.nanmean(end, axis=1) for end in ends]
    rng, drawn = np.random.default_rng(0), []
    for _ in range(2000):
        rows = rng.integers(count, size=count)
        drawn.append(spearmanr(means[0][rows], means[1][rows]).statistic)
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    single = [
        spearmanr(ends[0][:, seed], means[1]).statistic
        for seed in range(ends[0].shape[1])
        if np.isfinite(ends[0][:, seed]).all()
    ]
    ranks = np.argsort(np.argsort(means[1]))[np.argsort(means[0])[:3]] + 1
    whole = spearmanr(*means).statistic
    return (
        f"rank correlation of the {count} means {whole:.2f} (95 % {low:.2f} to {high:.2f}), of "
        f"single runs with the means there {np.mean(single):.2f}; the best three here are numbers "
        f"{', '.join(map(str, ranks))} there"
    )


def variance(values: np.ndarray) -> tuple[float, float]:
    """(within, between) variance of a one-way random-effects model; values (n, seeds), NaN: none.

    Within: between seeds of one configuration. Between: of the configurations' true means, 0 at
    least. Configurations with fewer than two seeds are left out.
    """
    values = values[np.isfinite(values).sum(axis=1) >= 2]
    count = np.isfinite(values).sum(axis=1)
    means = np.nanmean(values, axis=1)
    within = np.nansum((values - means[:, None]) ** 2) / (count.sum() - len(values))
    grand = (count * means).sum() / count.sum()
    squares = (count * (means - grand) ** 2).sum() / (len(values) - 1)
    typical = (count.sum() - (count**2).sum() / count.sum()) / (len(values) - 1)
    return float(within), float(max(0.0, (squares - within) / typical))


def noise(values: np.ndarray, objective: str) -> Table:
    """By epoch: spread between seeds and between configurations, and how well it predicts the end.

    The last row is for a run's score in a sweep: the mean over the last fifth.
    """
    table = Table(title=f"{objective} by epoch", title_justify="left")
    for column in (
        *("epoch", "mean", "std between seeds", "std between configurations"),
        *("share of the configuration (ICC)", "rank correlation with the end, single runs"),
        "with another seed's end",
    ):
        table.add_column(column, justify="right")
    ends, last = values[..., -1], _last(values)
    shown = [(str(epoch + 1), values[..., epoch]) for epoch in range(values.shape[2])]
    for name, here in [*shown, (f"last {last.shape[2]}", last.mean(axis=2))]:
        within, between = variance(here)
        table.add_row(
            name,
            f"{np.nanmean(here):.3f}",
            f"{within**0.5:.3f}",
            f"{between**0.5:.3f}",
            f"{between / (within + between or np.nan):.2f}",
            f"{_rank([(here.ravel(), ends.ravel())]):.2f}",
            f"{_rank(_across(here, ends)):.2f}",
        )
    return table


def predictors(table: Blackbox, values: np.ndarray, more: Objective | None = None) -> Table:
    """How well each measure, mean of three epochs, predicts the end of another seed of the same
    configuration (mean of the last fifth): rank correlation by epoch.

    A measure that came later, and most runs do not have, is left out."""
    shown = Table(
        title="rank correlation with another seed's end, by measure", title_justify="left"
    )
    ran = np.isfinite(values).any(axis=2)
    names = [name for name in table.names if name not in NOT_MEASURED]
    names = [n for n in names if np.isfinite(table.curves(n)[ran]).any(axis=-1).mean() > 0.5]
    measures = {name: table.curves(name) for name in names}
    if more:
        measures[more.name] = table.computed(more)
    epochs, ends = values.shape[2], _last(values).mean(axis=2)
    for column in ("after epoch", *measures):
        shown.add_column(column, justify="right")
    for epoch in sorted({max(1, round(epochs * part)) for part in PARTS}):
        three = slice(max(0, epoch - 3), epoch)
        early = [curve[..., three].mean(axis=2) for curve in measures.values()]
        shown.add_row(str(epoch), *(f"{_rank(_across(here, ends)):+.2f}" for here in early))
    return shown


def _last(values: np.ndarray) -> np.ndarray:
    """The last fifth of the epochs, at least one, whose mean is a run's score in a sweep."""
    return values[..., -max(1, values.shape[2] // LAST_PART) :]


def _across(here: np.ndarray, ends: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each ordered pair of the first three seeds: values of the one, ends of the other."""
    return [(here[:, a], ends[:, b]) for a, b in permutations(range(min(3, here.shape[1])), 2)]


def regions(table: Blackbox, values: np.ndarray) -> Table:
    """By thirds of each hyperparameter: mean end, share of diverged and of collapsed runs."""
    shown = Table(title="by region of the space", title_justify="left")
    for column in ("hyperparameter", "values", "runs", "mean end", "diverged", "collapsed"):
        shown.add_column(column, justify="left" if column == "hyperparameter" else "right")
    diverged = table.curves("diverged")[..., -1]
    ran = np.isfinite(diverged)
    measured = {key: least for key, least in COLLAPSED.items() if key in table.names}
    collapsed = np.zeros_like(ran)
    for key, least in measured.items():
        collapsed |= table.curves(key)[..., -1] < least
    for name, column in table.hyperparameters.items():
        for text, rows in _parts(column):
            here = ran[rows]
            if not here.any():
                continue
            with warnings.catch_warnings(action="ignore"):  # a region where all diverged
                mean = np.nanmean(values[rows][..., -1])
            share = f"{collapsed[rows][here].mean():.0%}" if measured else "–"
            count, part = str(here.sum()), f"{diverged[rows][here].mean():.0%}"
            shown.add_row(str(name), text, count, f"{mean:.3f}", part, share)
        shown.add_section()
    return shown


def _parts(column: pd.Series) -> list[tuple[str, np.ndarray]]:
    """Thirds of a continuous hyperparameter, or the values of another: text, mask of rows."""
    if column.dtype == bool:
        return [(str(value), (column == value).to_numpy()) for value in (False, True)]
    edges = column.quantile([0, 1 / 3, 2 / 3, 1]).to_numpy()
    values = column.to_numpy()
    return [
        (f"{low:.2g} to {high:.2g}", (values >= low) & (values <= high))
        for low, high in pairwise(edges)
    ]


def _rank(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Mean Spearman correlation of the pairs, over where both are finite."""
    found = []
    for a, b in pairs:
        both = np.isfinite(a) & np.isfinite(b)
        if both.sum() > 2 and np.ptp(a[both]) and np.ptp(b[both]):
            found.append(spearmanr(a[both], b[both]).statistic)
    return float(np.mean(found)) if found else float("nan")
