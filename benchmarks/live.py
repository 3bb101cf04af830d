"""Does the search beat others live? Real sweeps at equal compute, and what each announces, tested.

    python -m benchmarks.live run --data-dir DIR       trains; run it again to resume
    python -m benchmarks.live report

On SVHN's files in DIR, by turns: this project's sweep, random search whose trials all run in full,
and Ray Tune alone with OptunaSearch (TPE) and ASHA. Each searches the default space from random
points on, two trials of one thread at a time, until it has trained --budget epochs; epochs, not
minutes, so that other work on the machine favours none. The configuration that a search announces
is then trained --full-epochs with seeds that no search has used, and tested as in §4.4. The others'
searches start anew if they were killed; this project's resumes, and so do the trainings.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import optuna
from rich.console import Console
from rich.table import Table as Shown
from scipy.stats import spearmanr

from ali import environment
from ali.cli import main, parse_args
from ali.cli.common import check_at_least, check_choices
from ali.errors import UserError
from ali.files import make_folder
from ali.lock import folder_lock
from ali.metrics import (
    CODE_USE,
    EPOCH,
    SAMPLE_DISTANCE,
    SAMPLE_DIVERSITY,
    TEST_ERROR_MEAN,
    VAL_ERROR,
)
from benchmarks.curve_statistics import PARTS, WIDTH
from benchmarks.learning_curves import CURVE, DIVERGED
from benchmarks.live_searches import FOUND, SEARCHES, TESTED, Run, begin, check_data, read, train
from benchmarks.processes import apart
from sweeps import Objective

# May differ in a continuation
FREE = ("data_dir", "output_dir", "methods", "parallel", "gpus_per_trial")
FORETELL = (VAL_ERROR, SAMPLE_DISTANCE, SAMPLE_DIVERSITY, CODE_USE)


@dataclass(frozen=True)
class Report:
    """Print what has been found so far."""

    output_dir: Path = Path("runs/live")
    """Folder of all searches and trainings."""
    objective: str | None = None
    """A further measure, arithmetic of others (docs/space.md), to see how well it foretells."""


def run(options: Run) -> None:
    """All that is missing, repeat by repeat, so that an unfinished comparison is a smaller one."""
    check_at_least(
        1, repeats=options.repeats, budget=options.budget, epochs=options.epochs,
        full_epochs=options.full_epochs, seeds=options.seeds, draws=options.draws,
        parallel=options.parallel,
    )  # fmt: skip
    check_choices("methods", options.methods, SEARCHES)
    Objective.parse(options.objective)
    check_data(options.base())
    make_folder(options.output_dir)
    environment.set_defaults(OMP_NUM_THREADS="1")  # the SVMs' threads, too
    with folder_lock(options.output_dir, "the comparison"):
        begin(options.output_dir, options, FREE)
        searches = list(itertools.product(range(options.repeats), options.methods))
        for first in range(0, len(searches), options.parallel):
            some = searches[first : first + options.parallel]
            folders = [options.output_dir / folder_name(method, repeat) for repeat, method in some]
            with ThreadPoolExecutor(options.parallel) as pool:
                list(pool.map(partial(search, options), folders, *zip(*some, strict=True)))
            seeds = range(options.seeds)
            apart([(train, (options, folder, seed)) for folder in folders for seed in seeds])
    report(Report(options.output_dir))


def search(options: Run, folder: Path, repeat: int, method: str) -> None:
    """A search in its folder, unless it has ended."""
    if not (make_folder(folder) / FOUND).exists():
        SEARCHES[method](options, folder, repeat)


def report(options: Report) -> None:
    """What was found, and what foretold it. Raises UserError if nothing has been found yet."""
    more = None if options.objective is None else Objective.parse(options.objective)
    shown = Shown()
    for column in (
        *("method", "searches", "epochs", "trials", "announced"),
        *("val_error, trained in full", "test error"),
    ):
        shown.add_column(column, justify="left" if column == "method" else "right")
    for method in SEARCHES:
        folders = sorted(options.output_dir.glob(folder_name(method, "*")))
        found = [read(f / FOUND) for f in folders if (f / FOUND).exists()]
        tested = [[*map(read, f.glob(f"full-*/{TESTED}"))] for f in folders]
        tested = [its for its in tested if its]
        if not found:
            continue
        shown.add_row(
            method,
            str(len(found)),
            *(f"{np.mean([one[key] for one in found]):.0f}" for key in ("epochs", "trials")),
            spread([one["value"] for one in found]),
            spread([np.mean([one[VAL_ERROR] for one in its]) for its in tested]),
            spread([np.mean([one[TEST_ERROR_MEAN] for one in its]) for its in tested]),
        )
    if not shown.row_count:
        raise UserError(f"nothing has been found in {options.output_dir} yet: start `run` first")
    console = Console(highlight=False, width=WIDTH)
    console.print(shown)
    curves = [read(file) for file in sorted(options.output_dir.glob(f"*/full-*/{CURVE}"))]
    whole = [one["curve"] for one in curves if not one[DIVERGED]]
    if len(whole) > 2:
        console.print(foretold(whole, more))


def foretold(curves: Sequence[Sequence[dict[str, float]]], more: Objective | None = None) -> Shown:
    """How well measures after some epochs, as last evaluated, predict the last val_error: rank
    correlation over the trainings."""
    names = [name for name in FORETELL if all(name in curve[-1] for curve in curves)]
    title = f"rank correlation with the last val_error, {len(curves)} trainings"
    shown = Shown("after epoch", title=title, title_justify="left")
    evaluated = [[dict(m) for m in curve if VAL_ERROR in m] for curve in curves]
    if more:
        names.append(more.name)
        for metrics in itertools.chain(*evaluated):
            more.add_to(metrics, last=True)
    for name in names:
        shown.add_column(name, justify="right")
    ends = [curve[-1][VAL_ERROR] for curve in evaluated]
    epochs = min(int(curve[-1][EPOCH]) for curve in evaluated)
    for epoch in sorted({max(1, round(epochs * part)) for part in PARTS}):
        seen = [[m for m in curve if m[EPOCH] <= epoch] for curve in evaluated]
        if all(seen):
            told = [spearmanr([its[-1][name] for its in seen], ends).statistic for name in names]
            shown.add_row(str(epoch), *(f"{value:+.2f}" for value in told))
    return shown


def folder_name(method: str, repeat: int | str) -> str:
    return f"{method.replace(' ', '-')}-{repeat}"


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, as far as there are values."""
    if not values:
        return "–"
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if values[1:] else "")


def command() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    options = parse_args(Run | Report)
    run(options) if isinstance(options, Run) else report(options)


if __name__ == "__main__":
    main(command)
