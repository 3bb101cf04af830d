"""Tables of learning curves: many configurations, several seeds, to the full budget, none stopped.

    python -m benchmarks.learning_curves run mixture          trains; run it again to resume
    python -m benchmarks.learning_curves export mixture       writes benchmarks/tables/mixture
    python -m benchmarks.learning_curves describe mixture     what the table says of noise

`run` may be started any number of times, also on several machines that share --output-dir: each
process takes a run that no other has, and a killed run resumes after its last epoch. Processes have
low priority. They go through blocks of configurations, so that an unfinished table is a smaller
one; at the end the best configurations and the paper's get more seeds. If a table's epochs are
raised, its runs resume where they ended. Tables that are kept go into benchmarks/tables; the runs
in them are not trained again.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import pandas as pd
from tyro.conf import Positional

from ali import environment
from ali.cli import main, parse_args
from ali.cli.common import check_at_least
from ali.config import Config
from ali.errors import NonFiniteError, UserError
from ali.files import atomic_write, make_folder
from ali.lock import LockedError, folder_lock
from ali.metrics import EPOCH, MODES_MISSED, VAL_ERROR
from benchmarks import blackbox
from benchmarks.blackbox import Blackbox
from benchmarks.curve_statistics import describe
from benchmarks.processes import apart
from sweeps import InitialPoint, Objective, Space, paper_defaults, short_budget
from sweeps.engine.space import PAPER_VALUES, suggest
from sweeps.mixture import SPACE, quick

KEPT = Path(__file__).with_name("tables")  # the tables of the repository
CURVE, STATE = "curve.json", "state"  # in a run's folder
WAIT = 5.0  # seconds, while others train what is left
BLOCK = 20  # configurations of which all seeds are run before the next ones
CPU_SECONDS, DIVERGED = "cpu_seconds", "diverged"


@dataclass(frozen=True)
class Table:
    """What a table holds. Configuration 0 is the paper's, then `points`, then random ones.

    Attributes:
        base: what all runs share; its epochs are the full budget.
        configurations: how many, with `seeds` runs each: seeds 0, 1, …
        more_seeds: runs of each of the `best` configurations and of the paper's.
    """

    base: Config
    space: Space
    points: tuple[Any, ...]
    objective: str
    configurations: int
    seeds: int = 3
    best: int = 6
    more_seeds: int = 8

    def point(self, number: int) -> InitialPoint | None:
        return self.points[number](self.base) if number < len(self.points) else None

    def trial(self, number: int) -> tuple[dict[str, Any], optuna.trial.FrozenTrial]:
        """Fields of Config of a configuration, and the draw it comes from."""
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=number))
        if point := self.point(number):
            study.enqueue_trial(point.params, user_attrs={PAPER_VALUES: list(point.paper_values)})
        trial = study.ask()
        return suggest(trial, self.space, self.base), study.get_trials()[0]

    def config(self, number: int, seed: int) -> Config:
        return self.configured(self.trial(number)[0], seed)

    def configured(self, drawn: dict[str, Any], seed: int) -> Config:
        """The Config of a run with what `trial` has drawn."""
        return Config.from_dict({**self.base.to_dict(), **drawn, "seed": seed})

    def ended(self, folder: Path) -> dict[str, Any] | None:
        """The curve in a run's folder, if it has the full budget or has diverged before."""
        try:
            found = json.loads((folder / CURVE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        whole = len(found["curve"]) >= self.base.epochs
        return found if whole or found.get(DIVERGED) else None

    def end(self, folder: Path) -> float:
        """The objective at the full budget of a run that ended; infinity: diverged."""
        found = self.ended(folder)
        assert found is not None
        curve = found["curve"][: self.base.epochs]
        return curve[-1][self.objective] if len(curve) == self.base.epochs else np.inf


def known(base: Config) -> InitialPoint:
    """The best point found by hand when the tables of house numbers were begun.

    Its samples repeat a few pictures there, which was seen later; hence today's `short_budget` for
    house numbers. For other images it is still that one.
    """
    return short_budget(base.replace(data="svhn"))


EVALUATED = Config(eval_every=1)
# The settings at which training pays: the best known point ends below an untrained encoder (0.51)
# with all of eight seeds; with one level and an unbounded σ with three of four (docs/results.md).
HOUSE_NUMBERS = EVALUATED.replace(
    data="house-numbers", width=0.25, levels=2, sigma="sigmoid", batch_size=32, epochs=6, draws=2
)
TABLES = {
    "mixture": Table(
        EVALUATED.replace(
            data="mixture", train_size=12_000, epochs=27, width=0.25, precision="fp32"
        ),
        SPACE,
        (paper_defaults, quick),
        MODES_MISSED,
        configurations=300,
        best=24,
        more_seeds=16,
    ),
    "house-numbers": Table(
        HOUSE_NUMBERS,
        Space(),
        (paper_defaults, known),
        VAL_ERROR,
        configurations=60,
    ),
    "house-numbers-narrow": Table(  # the first of the same configurations
        HOUSE_NUMBERS.replace(width=0.125),
        Space(),
        (paper_defaults, known),
        VAL_ERROR,
        configurations=20,
    ),
}
Name = Literal["mixture", "house-numbers", "house-numbers-narrow"]


@dataclass(frozen=True)
class Run:
    """Train the runs of a table that are missing."""

    table: Positional[Name]
    output_dir: Path = Path("runs/tables")
    """Folder of the runs, one folder a table."""
    processes: int = 1
    """Runs at a time, one thread each."""
    nice: int = 19
    """Priority of the processes, 19 is the lowest."""
    tables: Path = KEPT
    """Folder of the tables: runs that are in them are not trained again."""


@dataclass(frozen=True)
class Export:
    """Write a table in Syne Tune's format."""

    table: Positional[Name]
    output_dir: Path = Path("runs/tables")
    """Folder of the runs."""
    to: Path = KEPT
    """Folder of the tables."""


@dataclass(frozen=True)
class Describe:
    """Print what a table says of noise, early epochs and regions of the space."""

    table: Positional[Name]
    objective: str | None = None
    """Arithmetic of the table's measures (docs/space.md), to see how well it predicts the end."""
    tables: Path = KEPT
    """Folder of the tables."""


def run(options: Run) -> None:
    check_at_least(1, processes=options.processes)
    folder = make_folder(options.output_dir / options.table)
    unpack(options.table, folder, options.tables)
    os.nice(options.nice)
    environment.set_defaults(OMP_NUM_THREADS="1")  # of the processes: the SVMs' threads, too
    apart([(work, (options.table, folder))] * options.processes)


def work(name: str, folder: Path) -> None:
    """Trains one run after the other until all have ended.

    Where other processes have taken all that are left, it waits: one of them may be killed, and
    which configurations get more seeds is known only once they are done.
    """
    import torch

    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table = TABLES[name]
    while left := list(missing(table, folder)):
        trained = False
        for number, seed in left:
            here = run_folder(folder, number, seed)
            here.mkdir(exist_ok=True)
            with contextlib.suppress(LockedError), folder_lock(here, f"run {here.name}"):
                if table.ended(here) is None:
                    train(table.config(number, seed), here)
                    trained = True
        if not trained:
            time.sleep(WAIT)


def missing(table: Table, folder: Path) -> Iterator[tuple[int, int]]:
    """(configuration, seed) of the runs that have not ended, the next ones first."""
    left = False
    for first in range(0, table.configurations, BLOCK):
        for seed in range(table.seeds):
            for number in range(first, min(first + BLOCK, table.configurations)):
                if table.ended(run_folder(folder, number, seed)) is None:
                    left = True
                    yield number, seed
    if left:
        return
    ends = [
        np.mean([table.end(run_folder(folder, number, seed)) for seed in range(table.seeds)])
        for number in range(table.configurations)
    ]
    chosen = dict.fromkeys([0, *np.argsort(ends, kind="stable")[: table.best].tolist()])
    for seed in range(table.seeds, table.more_seeds):
        for number in chosen:
            if table.ended(run_folder(folder, number, seed)) is None:
                yield number, seed


def unpack(name: str, folder: Path, tables: Path) -> None:
    """Copies the ended runs of a kept table to where `run` would have written them.

    Raises UserError if the kept table's settings or points differ from this one's.
    """
    if not (tables / name).is_dir():
        return
    table, kept = TABLES[name], blackbox.read(tables / name)
    base = Config.from_dict({**kept.metadata["base"], "seed": table.base.seed})
    points = kept.hyperparameters.to_dict("records")
    drawn = [table.trial(number) for number in range(len(points))]
    rows = [effective(trial.params, points[0]) for _, trial in drawn]
    if (base, rows) != (table.base, points):
        raise UserError(f"{tables / name} is another table: name another folder with --tables")
    for number, seed in np.ndindex(kept.objectives.shape[:2]):
        where = run_folder(folder, number, seed)
        values = kept.objectives[number, seed].astype(float)
        values = values[values[:, kept.names.index(DIVERGED)] == 0]
        if np.isnan(kept.objectives[number, seed, 0]).all() or (where / CURVE).exists():
            continue
        curve = [
            {EPOCH: n, **dict(zip(kept.names, row, strict=True))}
            for n, row in enumerate(values.tolist(), 1)
        ]
        curve = [{k: v for k, v in m.items() if k != DIVERGED and v == v} for m in curve]
        diverged = None if len(curve) == base.epochs else f"after epoch {len(curve)}"
        config = table.configured(drawn[number][0], seed)
        write_curve(make_folder(where), config, curve, diverged)


def write_curve(
    folder: Path, config: Config, curve: list[dict[str, Any]], diverged: str | None
) -> None:
    with atomic_write(folder / CURVE) as path:
        content = {"config": config.to_dict(), "curve": curve, DIVERGED: diverged}
        path.write_text(json.dumps(content), encoding="utf-8")


def train(config: Config, folder: Path) -> None:
    """Trains one run to its end, from its last epoch on."""
    from ali import experiment
    from ali.training.state import State

    state = curve = None
    try:
        state = State.load(folder / STATE, "cpu", config)
        curve = json.loads((folder / CURVE).read_text(encoding="utf-8"))["curve"][: state.epoch]
    except (UserError, OSError):
        state, curve = None, []
    spent = time.process_time()
    try:
        for trained, metrics in experiment.run(config, state=state):
            curve.append({**metrics, CPU_SECONDS: time.process_time() - spent})
            write_curve(folder, config, curve, diverged=None)
            trained.save(folder / STATE)
            spent = time.process_time()
    except NonFiniteError as error:
        write_curve(folder, config, curve, str(error))
    print(f"run {folder.name}: {json.dumps(curve[-1] if curve else {})}", flush=True)


def run_folder(folder: Path, number: int, seed: int) -> Path:
    return folder / f"{number:05d}-{seed}"


def export(options: Export) -> None:
    """Writes the runs that have ended. Raises UserError if one belongs to another table."""
    table, folder = TABLES[options.table], options.output_dir / options.table
    runs: dict[tuple[int, int], dict[str, Any]] = {}
    drawn = [table.trial(number) for number in range(table.configurations)]
    for number, (point, _) in enumerate(drawn):
        for seed in range(table.more_seeds):
            config = table.configured(point, seed)
            if found := table.ended(run_folder(folder, number, seed)):
                begun = Config.from_dict({**found["config"], "epochs": table.base.epochs})
                if begun != config:
                    where = run_folder(folder, number, seed)
                    raise UserError(f"{where} is of another table: choose another --output-dir")
                runs[number, seed] = found
    if not runs:
        raise UserError(f"no run in {folder} has ended: start `run {options.table}` first")
    names = sorted({name for found in runs.values() for m in found["curve"] for name in m})
    names = [DIVERGED, *(name for name in names if name != EPOCH)]
    shape = (table.configurations, table.more_seeds, table.base.epochs, len(names))
    values = np.full(shape, np.nan, np.float32)
    for (number, seed), found in runs.items():
        here = values[number, seed]
        here[:, 0] = 0
        for epoch, metrics in enumerate(found["curve"][: table.base.epochs]):
            here[epoch, 1:] = [metrics.get(name, np.nan) for name in names[1:]]
        here[len(found["curve"]) :, 0] = 1
    distributions: dict[str, Any] = {}
    for _, trial in drawn:
        distributions |= trial.distributions
    rows = [effective(trial.params, distributions) for _, trial in drawn]
    metadata = {
        "objective": table.objective,
        "base": {**table.base.to_dict(), "seed": None},
        "points": [point.__name__ for point in table.points],
        "runs": len(runs),
        "metric_to_minimize": [table.objective],
    }
    written = Blackbox(pd.DataFrame(rows), values, tuple(names), metadata)
    blackbox.write(options.to / options.table, written, options.table, distributions)
    print(f"{len(runs)} runs in {options.to / options.table}")


def effective(params: dict[str, Any], names: Any) -> dict[str, Any]:
    """A point with a value for each of `names`; those that were not drawn get the effective one.

    Adam of encoder and decoder is the discriminator's unless `adam_apart`; no layer of D(x) has
    batch norm unless `bn`.
    """
    shared = {name: params.get(f"{name[:-1]}d", False) for name in names if name.endswith("_g")}
    return {name: params.get(name, shared.get(name, False)) for name in names}


def command() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    options = parse_args(Run | Export | Describe)
    if isinstance(options, Run):
        run(options)
    elif isinstance(options, Export):
        export(options)
    else:
        table, kept = blackbox.read(options.tables / options.table), options.tables.glob("*/")
        others = sorted(one for one in kept if one.name in TABLES and one.name != options.table)
        more = None if options.objective is None else Objective.parse(options.objective)
        describe(table, options.table, {one.name: blackbox.read(one) for one in others}, more)


if __name__ == "__main__":
    main(command)
