"""The end of a full training: the test split, which only this reads, and the model registry."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from ali.config import Config
from ali.data import Dataset, Images
from ali.errors import NonFiniteError
from ali.metrics import TEST_ERROR_MEAN, TEST_ERROR_STD, VAL_ERROR
from ali.output import console

if TYPE_CHECKING:
    from ali.models.base import Networks

WIDTH = 100  # characters of the printed table
NOT_COMPARABLE = "Not comparable with the published errors: not the official SVHN."


@dataclass(frozen=True)
class Outcome:
    """The result of a full training.

    Attributes:
        config: the experiment; its seed is the training's.
        run_id: its MLflow run.
        epoch: the one after which it was tested.
        found: the objective at the last epoch and the test's results, by metric.
    """

    config: Config
    run_id: str
    epoch: int
    found: dict[str, float]


def test_metrics(
    networks: Networks, dataset: Dataset, test: Images, config: Config, objective: str, svms: int
) -> tuple[dict[str, float], list[float]]:
    """The test split's metrics: the protocol of §4.4, or sample quality without labels.

    The error is a fraction, mean and standard deviation over `svms` labelled draws; each draw's
    error is returned, too.
    """
    from ali.evaluation import protocol, quality

    if objective != VAL_ERROR:
        print(f"testing the samples against {len(test)} test images")
        found = quality.measure(networks, replace(dataset, valid=test), config)
        return {f"test_{name}": value for name, value in found.items()}, []
    by = "its own classifier" if networks.kind.classifies else f"{svms} SVMs"
    print(f"testing with {by} on {len(test)} test images")
    errors = protocol.test_errors(networks, dataset, test, config, draws=svms)
    std = errors.std(ddof=1 if len(errors) > 1 else 0)
    found = {TEST_ERROR_MEAN: float(errors.mean()), TEST_ERROR_STD: float(std)}
    return found, errors.tolist()


test_metrics.__test__ = False  # type: ignore[attr-defined]  # nothing for pytest to collect


def best_of(found: Sequence[Outcome], objective: str, maximize: bool = False) -> Outcome:
    """The training with the best objective; one without a value, as log(0), comes last."""
    sign = -1 if maximize else 1

    def loss(one: Outcome) -> float:
        value = one.found[objective]
        return sign * value if np.isfinite(value) else np.inf

    return min(found, key=loss)


def over_seeds(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """Each metric's mean and standard deviation over trainings, by their names in MLflow.

    A training's own standard deviation, over SVMs, is left out, and so are values that are no
    numbers, unless all are. Of one value, the standard deviation is NaN.
    """
    names = [name for name in found[0] if name != TEST_ERROR_STD]
    summary: dict[str, float] = {"seeds": float(len(found))}
    for name in names:
        values = np.array([one[name] for one in found])
        values = values[np.isfinite(values)] if np.isfinite(values).any() else values
        summary[f"{name}_over_seeds"] = float(values.mean())
        std = float(values.std(ddof=1)) if len(values) > 1 else math.nan
        summary[f"{name}_std_over_seeds"] = std
    return summary


def seeds_table(
    trained: Sequence[tuple[int, Outcome | NonFiniteError]], objective: str, maximize: bool = False
) -> str:
    """One row per (seed, result of its training); the best by validation is marked."""
    ended = [found for _, found in trained if not isinstance(found, NonFiniteError)]
    names = [name for name in ended[0].found if name != TEST_ERROR_STD]
    names.sort(key=lambda name: name != objective)
    best = best_of(ended, objective, maximize)
    table = Table(title="Seeds that the sweep has not used", title_justify="left")
    table.add_column("seed")
    for name in names:
        table.add_column(name, justify="right")
    for seed, found in trained:
        if isinstance(found, NonFiniteError):
            table.add_row(str(seed), *["diverged" for _ in names])
        else:
            mark = " (best by validation)" if found is best else ""
            table.add_row(f"{seed}{mark}", *(f"{found.found[name]:.4f}" for name in names))
    if len(ended) > 1:
        table.add_section()
        summary = over_seeds([found.found for found in ended])
        stds = [summary[f"{name}_std_over_seeds"] for name in names]
        shown = ["" if math.isnan(std) else f" ± {std:.4f}" for std in stds]
        means = [f"{summary[f'{name}_over_seeds']:.4f}" for name in names]
        table.add_row("mean ± std", *map("".join, zip(means, shown, strict=True)))
    text = console(width=WIDTH, color_system=None)
    with text.capture() as capture:
        text.print(table)
    return capture.get()


def in_table_1(config: Config) -> bool:
    """Whether Table 1 has errors to compare with."""
    return config.data in ("svhn", "house-numbers")


def result_rows(found: dict[str, float], config: Config, epochs: int) -> list[tuple[str, str]]:
    """(model, error) of Table 1, and of this run at the end."""
    from ali.evaluation.table1 import TABLE_1

    mean, std = found[TEST_ERROR_MEAN], found[TEST_ERROR_STD]
    own = f"this run ({config.data}, {config.labels} labels, {epochs} epochs)"
    error = f"{mean:.2%} (± {std:.2%})" if std else f"{mean:.2%}"  # of one classifier
    return [*TABLE_1, (own, error.replace("%", " %"))]


def result_note(found: dict[str, float], config: Config, epochs: int, unofficial: bool) -> str:
    """The result as Markdown: the description of the training's MLflow run."""
    if not in_table_1(config):
        return _markdown(("metric", "value"), [(k, f"{v:.4f}") for k, v in found.items()])
    rows = result_rows(found, config, epochs)
    rows[-1] = (f"**{rows[-1][0]}**", f"**{rows[-1][1]}**")
    text = "Test error, beside Table 1 of the paper\n\n" + _markdown(("model", "error"), rows)
    return text + (f"\n{NOT_COMPARABLE}\n" if config.data != "svhn" or unofficial else "")


def _markdown(heads: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    return "".join(f"| {one} | {two} |\n" for one, two in (heads, ("---", "---:"), *rows))


def result_table(found: dict[str, float], config: Config, epochs: int, unofficial: bool) -> str:
    """The result as text: for house numbers beside Table 1, otherwise one line per metric.

    Args:
        unofficial: whether the data differs from what its authors publish.
    """
    if not in_table_1(config):
        lines = [f"{config.data}, {epochs} epochs:"]
        return "\n".join(lines + [f"  {name} {value:.4f}" for name, value in found.items()])
    table = Table(
        title="Table 1: test error with 1000 labels, as published, and this run",
        title_justify="left",
    )
    table.add_column("model")
    table.add_column("error", justify="right")
    *published, own = result_rows(found, config, epochs)
    for row in published:
        table.add_row(*row)
    table.add_section()
    table.add_row(*own)
    text = console(width=WIDTH, color_system=None)
    with text.capture() as capture:
        text.print(table)
        if config.data != "svhn" or unofficial:
            text.print(NOT_COMPARABLE)
    return capture.get()
