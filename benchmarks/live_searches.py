"""What benchmarks/live.py compares: searches with real processes, and trainings that are tested."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from ray.tune import Stopper

from ali import data
from ali.config import Common, Config
from ali.errors import UserError
from ali.files import atomic_write, make_folder
from ali.metrics import EPOCH, TEST_ERROR_MEAN, VAL_ERROR
from benchmarks import learning_curves
from benchmarks.processes import apart, end_with
from sweeps import LoadedSweep, Objective, Options, Space, Sweep, launch, load
from sweeps.engine import cluster
from sweeps.engine import launch as launching
from sweeps.engine.space import suggest

OURS, RANDOM, TUNE = "this project", "random search", "OptunaSearch and ASHA"
FOUND, TESTED = "found.json", "tested.json"
BEGUN = "options.json"  # of a comparison, which cannot be continued with others
SEEDS_APART = 10_000  # between repeats: the seeds of their trials; the last ones are the judges'
JUDGES = 900_000
SLOTS = 2
BY_CHANCE = 0.9  # the error of a training that diverges
POLL, STOPPING = 5.0, 120.0  # seconds between looks at a sweep's epochs; for which it may stop
NAME = "ours"  # of this project's sweep, in the folder of its search


@dataclass(frozen=True)
class Run:
    """Search with each method, then train and test what it announces."""

    data_dir: Path
    """Folder of SVHN's .mat files."""
    output_dir: Path = Path("runs/live")
    """Folder of all searches and trainings."""
    repeats: int = 3
    """Searches with each method."""
    budget: int = 480
    """Epochs of each search."""
    epochs: int = 24
    """Full budget of a trial."""
    full_epochs: int = 72
    """Epochs of the trainings that are tested."""
    seeds: int = 2
    """Trainings of what each search announces."""
    width: float = 0.25
    """Multiplier of every hidden layer's feature maps."""
    draws: int = 100
    """SVMs that a training is tested with."""
    objective: str = VAL_ERROR
    """What all searches compare trials by: a metric, or arithmetic of several (docs/space.md)."""
    methods: tuple[str, ...] = (OURS, RANDOM, TUNE)
    """Which methods."""
    parallel: int = 1
    """Searches at a time; more than one need a Ray cluster to share."""
    gpus_per_trial: float = 0.0
    """Part of a GPU for each trial."""

    def base(self) -> Config:
        """What all trials have in common."""
        return Config(
            data="svhn", data_dir=self.data_dir.resolve(), width=self.width, batch_size=32,
            epochs=self.epochs, eval_every=3, draws=2, sigma="sigmoid",
        )  # fmt: skip


def announce(folder: Path, config: dict[str, Any], value: float, **more: Any) -> None:
    """Writes what a search has found."""
    with atomic_write(folder / FOUND) as path:
        found = {"config": config, "value": value, **more}
        path.write_text(json.dumps(found, indent=1), encoding="utf-8")


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def check_data(config: Config) -> None:
    """Raises UserError if the data of a comparison cannot be read, its test images included."""
    data.load(config)
    data.load_test(config)


def begin(folder: Path, options: Any, free: Collection[str]) -> None:
    """Keeps a comparison's options in its folder, a dataclass without the fields in `free`.

    Raises UserError if it has begun with others; an option that there was not then had its default.
    """
    asked = [f for f in fields(options) if f.name not in free]
    fixed = _plain({f.name: getattr(options, f.name) for f in asked})
    usual, begun = _plain({f.name: f.default for f in asked}), folder / BEGUN
    if begun.exists() and {**usual, **read(begun)} != fixed:
        raise UserError(f"{begun} has other options: give those, or another --output-dir")
    begun.write_text(json.dumps(fixed), encoding="utf-8")


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON has them; paths and the like as text."""
    return json.loads(json.dumps(values, default=str))


def ours(options: Run, folder: Path, repeat: int) -> None:
    """This project's sweep, as its scripts start it."""
    common = {field.name: getattr(options.base(), field.name) for field in fields(Common)}
    asked = Options(
        **common, name=NAME, output_dir=folder, race=3, num_trials=options.budget,
        seed=SEEDS_APART * repeat, cpus_per_trial=1, max_concurrent=SLOTS,
        gpus_per_trial=options.gpus_per_trial, objective=options.objective,
    )  # fmt: skip
    found = swept(Sweep(points_to_evaluate=()), asked, options.budget)
    assert found.best.expected is not None
    count = {"epochs": spent(asked), "trials": len(found.trials)}
    announce(folder, found.best.config, found.best.expected.mean, **count)


def swept(sweep: Sweep, options: Options, budget: int) -> LoadedSweep:
    """A sweep that is started or resumed in a process of its own, and stopped like by Ctrl-C once
    its trials have trained `budget` epochs. Raises UserError if it ends before."""
    spawn = multiprocessing.get_context("spawn")
    child = spawn.Process(target=start, args=(sweep, options, os.getpid()))
    child.start()
    while child.is_alive() and spent(options) < budget:
        child.join(POLL)
    while child.is_alive():
        assert child.pid is not None
        os.kill(child.pid, signal.SIGINT)
        child.join(STOPPING)
    if spent(options) < budget:
        where = options.folder
        raise UserError(f"the sweep in {where} ended before its budget: run the command again")
    return load(options)


def start(sweep: Sweep, options: Options, parent: int) -> None:
    end_with(parent, signal.SIGINT)
    raise SystemExit(launch(sweep, replace(options, resume=options.folder.exists())))


def spent(options: Options) -> int:
    """Epochs that a sweep has trained and evaluated."""
    try:
        return sum(max(trial.values, default=0) for trial in load(options).trials)
    except UserError:
        return 0  # it is only starting


def bare(method: str, options: Run, folder: Path, repeat: int) -> None:
    """Random search or Ray Tune as its documentation has it, in a process of its own."""
    apart([(tune_bare, (method, options, folder, repeat))])


@dataclass
class Points:
    """Draws a point for OptunaSearch, and the seed of its trial."""

    base: Config
    seed: int

    def __call__(self, trial: optuna.Trial) -> dict[str, Any]:
        suggest(trial, Space(), self.base)
        self.seed += 1
        return {"seed": self.seed - 1}


class Budget(Stopper):
    """Ends a search of Tune's once its trials have trained so many epochs."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._trained: dict[str, int] = {}  # epochs of each trial; Tune gives its last one twice

    @property
    def epochs(self) -> int:
        return sum(self._trained.values())

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self._trained[trial_id] = result[EPOCH]
        return False

    def stop_all(self) -> bool:
        return self.epochs >= self._budget


def tune_bare(method: str, options: Run, folder: Path, repeat: int) -> None:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    base = options.base()
    first, random = SEEDS_APART * repeat, method == RANDOM
    sampler = (optuna.samplers.RandomSampler if random else optuna.samplers.TPESampler)(seed=first)
    metric = Objective.parse(options.objective).name
    asha = ASHAScheduler(
        time_attr=EPOCH, metric=metric, mode="min", max_t=options.epochs,
        grace_period=base.evaluation_interval,
    )  # fmt: skip
    search = OptunaSearch(Points(base, first), metric=metric, mode="min", sampler=sampler)
    budget = Budget(options.budget)
    launching.quiet_libraries()
    cluster.start_ray()
    given = {"base": base.to_dict(), "objective": options.objective}
    trainable = tune.with_parameters(trial_of_tune, **given)
    results = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1, "gpu": options.gpus_per_trial}),
        tune_config=tune.TuneConfig(
            search_alg=ConcurrencyLimiter(search, SLOTS),
            scheduler=FIFOScheduler() if random else asha,
            num_samples=-1,
        ),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(folder.resolve()), stop=budget, verbose=0
        ),
    ).fit()
    last = [metrics for i in range(len(results)) if (metrics := results[i].metrics)]
    whole = [metrics for metrics in last if metrics.get(EPOCH) == options.epochs]
    if not whole:
        raise UserError("no trial has reached its full budget: give more --budget")
    best = min(whole, key=lambda metrics: metrics[metric])
    config = drawn(best["config"], base.to_dict()).to_dict()
    announce(folder, config, best[metric], epochs=budget.epochs, trials=len(results))


def drawn(params: dict[str, Any], base: dict[str, Any]) -> Config:
    """The experiment of a point that Tune's search has drawn."""
    point = {name: value for name, value in params.items() if name != "seed"}
    found = suggest(optuna.trial.FixedTrial(point), Space(), Config.from_dict(base))
    return Config.from_dict({**base, **found, "seed": params["seed"]})


def trial_of_tune(params: dict[str, Any], base: dict[str, Any], objective: str) -> None:
    """Trains a trial of the bare side."""
    import torch
    from ray import tune

    from ali import experiment

    torch.set_num_threads(1)
    sought = Objective.parse(objective)
    for _, metrics in experiment.run(drawn(params, base)):
        sought.add_to(metrics)
        if sought.name in metrics:  # ASHA and OptunaSearch take no result without it
            tune.report(metrics)


def train(options: Run, folder: Path, number: int) -> None:
    """In a process of its own: trains the announced configuration in full, and tests it."""
    import torch

    from ali.evaluation import protocol
    from ali.training.state import State

    here = make_folder(folder / f"full-{number}")
    if (here / TESTED).exists():
        return
    torch.set_num_threads(1)
    found = json.loads((folder / FOUND).read_text(encoding="utf-8"))["config"]
    data_dir = options.data_dir.resolve()  # the searches may have run on another machine
    more = {"epochs": options.full_epochs, "seed": JUDGES + number, "data_dir": data_dir}
    config = Config.from_dict({**found, **more})
    learning_curves.train(config, here)
    ended = json.loads((here / learning_curves.CURVE).read_text(encoding="utf-8"))
    tested = dict.fromkeys((TEST_ERROR_MEAN, VAL_ERROR), BY_CHANCE)
    if not ended[learning_curves.DIVERGED]:
        networks = State.load(here / learning_curves.STATE, "cpu", config).networks
        test = data.load_test(config)
        errors = protocol.test_errors(networks, data.load(config), test, config, options.draws)
        tested = {TEST_ERROR_MEAN: float(errors.mean()), VAL_ERROR: ended["curve"][-1][VAL_ERROR]}
    with atomic_write(here / TESTED) as path:
        path.write_text(json.dumps(tested), encoding="utf-8")


SEARCHES: dict[str, Callable[[Run, Path, int], None]] = {
    OURS: ours,
    RANDOM: partial(bare, RANDOM),
    TUNE: partial(bare, TUNE),
}
