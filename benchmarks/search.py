"""Does the search beat random search? Replays of it and of baselines on tables of learning curves.

    python -m benchmarks.search mixture                 200 replays of each method
    python -m benchmarks.search mixture --replays 20 --methods shipped random

Each method runs as it would live, on a simulated clock (replay.py), confined to the table's rows.
`shipped` are the classes of a real sweep: Study, Forest, EarlyStopping, StudySearch, StudyRecorder;
`TPE` the same with `--sampler tpe`, `no race` with `--race 0`. The baselines: random search, and
what it would be if each trial showed its configuration's true mean; the best of 64 random points
after some epochs, trained to the end (top-k); Ray's own ASHA on random points; Ray Tune with
OptunaSearch (TPE) and ASHA; this project as it was at commit c5b0496 (TPE, fixed rungs, a diverged
trial reported as failed, no repetitions). A method's choice after so many epochs is judged by the
mean of its configuration's runs with seeds that the method has not seen. The target is random
search's choice after 64 whole trials.
"""

from __future__ import annotations

import logging
import multiprocessing
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from rich.console import Console
from rich.table import Table as Shown
from tyro.conf import Positional

from ali.cli import main, parse_args
from ali.cli.common import check_at_least, check_choices
from benchmarks.curve_statistics import WIDTH
from benchmarks.learning_curves import KEPT, Name
from benchmarks.replay import Choice, Curves, Trace, regret, simulate
from benchmarks.search_methods import BASELINES, METHODS, ORACLE, RANDOM_TRIALS, SLOTS, Rows
from sweeps import Objective


@cache
def rows_of(name: str, tables: Path, objective: str | None = None) -> Rows:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    return Rows(name, tables, Objective.parse(objective) if objective is not None else None)


def replay(name: str, tables: Path, objective: str | None, method: str, number: int) -> Trace:
    """Replay `number` of a method: all methods meet the same seeds of the table in it."""
    rows = rows_of(name, tables, objective)
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").exists() else None))
    try:
        made = METHODS[method](rows, np.random.default_rng([number, 1]), folder)
        budget = RANDOM_TRIALS * rows.curves.epochs
        return simulate(made, rows.curves, np.random.default_rng([number, 2]), budget, SLOTS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Replays:
    """Compare searches on a table."""

    table: Positional[Name]
    replays: int = 200
    """Replays of each method."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Which methods: all unless named."""
    objective: str | None = None
    """What the searches see in place of the table's objective: a metric of the table, or arithmetic
    of several (docs/space.md). Regret stays that of the table's objective."""
    tables: Path = KEPT
    """Folder of the tables."""
    processes: int = 2
    """Replays at a time."""
    picture: Path | None = None
    """PNG file to draw the regrets in."""


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Mean of the middle half along axis 0 (rliable, arXiv 2108.13264)."""
    values = np.sort(values, axis=0)
    quarter = len(values) // 4
    return values[quarter : len(values) - quarter].mean(axis=0)


def epochs_to(target: float, curve: np.ndarray, grid: np.ndarray) -> float:
    """The first epochs after which a curve stays at or below the target; infinity: never."""
    above = np.flatnonzero(curve > target)
    if not len(above):
        return float(grid[0])
    return float(grid[above[-1] + 1]) if above[-1] + 1 < len(grid) else float("inf")


@dataclass(frozen=True)
class Race:
    """Which methods come to a regret of `target` in fewer epochs.

    Attributes:
        regrets: of each method, (replays, len(grid)).
        grid: epochs spent.
    """

    regrets: dict[str, np.ndarray]
    target: float
    grid: np.ndarray

    def epochs(self, name: str, replays: Any = slice(None)) -> float:
        curve = interquartile_mean(self.regrets[name][replays])
        return epochs_to(self.target, curve, self.grid)

    def speed_up(self, name: str, others: Sequence[str]) -> tuple[float, float, float]:
        """How many times fewer epochs a method needs than the best of the others, and its 95 %
        interval, by resampling the replays, the best of the others in each resample."""
        count = len(self.regrets[name])
        rng = np.random.default_rng(0)
        draws = [slice(None), *(rng.integers(0, count, count) for _ in range(400))]
        ratios = [min(self.epochs(o, d) for o in others) / self.epochs(name, d) for d in draws]
        low, high = np.nanquantile(ratios[1:], [0.025, 0.975], method="inverted_cdf")
        return ratios[0], low, high  # some may be infinite

    def against_baselines(self) -> str:
        """A line for each method of this project."""
        known = [name for name in BASELINES if name in self.regrets]
        best, lines = min(known, key=self.epochs), []
        for name in (name for name in self.regrets if name not in (*known, ORACLE)):
            ratio, low, high = self.speed_up(name, known)
            lines.append(
                f"{name}: {ratio:.2f} times fewer epochs than the best of {len(known)} baselines, "
                f"{best} (95 %: {low:.2f} to {high:.2f})"
            )
        return "\n".join(lines)


def compare(options: Replays) -> None:
    """Runs them and prints the table. Raises UserError for options that cannot be."""
    check_at_least(1, replays=options.replays, processes=options.processes)
    check_choices("methods", options.methods, METHODS)
    rows = rows_of(options.table, options.tables, options.objective)
    budget = RANDOM_TRIALS * rows.curves.epochs
    grid = np.unique(np.geomspace(rows.curves.epochs, budget, 80).astype(int))
    traces: dict[str, list[Trace]] = {}
    for method in dict.fromkeys(("random", *options.methods)):
        one = partial(replay, options.table, options.tables, options.objective, method)
        with multiprocessing.get_context("forkserver").Pool(options.processes) as pool:
            traces[method] = pool.map(one, range(options.replays), chunksize=4)
    regrets = {name: regret(found, rows.curves, grid) for name, found in traces.items()}
    target = float(interquartile_mean(regrets["random"])[-1])
    console = Console(highlight=False, width=WIDTH + 30)
    console.print(
        f"{options.table}: {options.replays} replays, budget {budget} epochs, {SLOTS} slots; best "
        f"true mean {np.nanmin(rows.curves.means):.3f}, random row {rows.curves.means.mean():.3f}; "
        f"target: regret {target:.3f}"
    )
    race = Race(regrets, target, grid)
    console.print(summary(traces, race, rows.curves))
    console.print(race.against_baselines())
    if options.picture:
        draw(options.picture, regrets, target, grid, options.table)


def summary(traces: dict[str, list[Trace]], race: Race, curves: Curves) -> Shown:
    """One row per method: regrets (interquartile mean), epochs to the target, honesty, mistakes."""
    shown = Shown()
    for column in (
        *("method", "regret at 1/8", "at 1/4", "at 1/2", "at the end", "epochs to target"),
        *("speed-up", "95 %", "announced − true", "interval holds true"),
        *("with its noise", "truly best tenth stopped"),
    ):
        first = column == "method"
        shown.add_column(column, justify="left" if first else "right", no_wrap=first)
    grid = race.grid
    for name, values in race.regrets.items():
        middle = interquartile_mean(values)
        at = [middle[np.searchsorted(grid, grid[-1] / part)] for part in (8, 4, 2, 1)]
        ratio, low, high = race.speed_up(name, ["random"])
        off = [t.choices[-1].mean - t.expected[-1] for t in traces[name] if t.choices]
        held = [within(0.0, *one) for one in announced(traces[name])]
        near = [within(1.96, *one) for one in announced(traces[name])]
        lost = [len(t.stopped & curves.tenth) / len(curves.tenth) for t in traces[name]]
        shown.add_row(
            name,
            *(f"{value:.3f}" for value in at),
            f"{race.epochs(name):.0f}",
            f"{ratio:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{np.mean(off):+.3f}",
            f"{np.mean(held):.0%} of {len(held)}" if held else "–",
            f"{np.mean(near):.0%}" if near else "–",
            f"{np.mean(lost):.1%}",
        )
    return shown


def announced(traces: list[Trace]) -> list[tuple[Choice, float, float]]:
    """What was announced at the end with an interval, the mean over seeds that were not used for
    it, and that mean's standard error."""
    last = [(t.choices[-1], t.expected[-1], t.error[-1]) for t in traces if t.choices]
    return [one for one in last if np.isfinite(one[0].high)]


def within(errors: float, choice: Choice, truth: float, error: float) -> bool:
    """Whether the truth is in the interval, widened by so many of the truth's standard errors.

    Both are noisy: the widths add as independent errors do.
    """
    wide = np.hypot(choice.high - choice.mean, errors * error)
    return abs(truth - choice.mean) <= wide


def draw(
    path: Path, regrets: dict[str, np.ndarray], target: float, grid: np.ndarray, table: str
) -> None:
    """Regret by epochs spent, one line per method, with the bootstrap interval as a band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    rng = np.random.default_rng(0)
    for name, values in regrets.items():
        draws = [values[rng.integers(0, len(values), len(values))] for _ in range(200)]
        low, high = np.percentile([interquartile_mean(d) for d in draws], [2.5, 97.5], axis=0)
        (line,) = axes.plot(grid, interquartile_mean(values), label=name, linewidth=2)
        axes.fill_between(grid, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.axhline(target, color="0.4", linestyle="--", linewidth=1)
    axes.annotate("random search after 64 trials", (grid[0], target), xytext=(2, 4),
                  textcoords="offset points", color="0.3")  # fmt: skip
    axes.set(xscale="log", xlabel="epochs trained", ylabel="regret of the choice, other seeds")
    axes.set_title(f"{table}: interquartile mean of {len(values)} replays, 95 % bootstrap band")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def command() -> None:
    compare(parse_args(Replays))


if __name__ == "__main__":
    main(command)
