"""What our driver costs beside bare Ray Tune with OptunaSearch: trials that do nothing.

    python benchmarks/driver.py [--trials 100] [--results 20] [--parts 5]

Each side runs in a process of its own with a Ray of its own: the same space, sampler, concurrency
and checkpoints (one per result, as resuming needs), no trial stopped early. Ours adds the journal,
the scheduler, MLflow and the line per event; the bare side keeps its study in memory and logs
nothing. The curve is the wall time per result in each part of the trials, in order, which
shows what grows with the number of finished trials. "asking" is the part of it that Optuna takes
to draw a point.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from ray import tune

from ali.cli import main
from ali.cli.common import check_at_least
from ali.config import Config
from ali.metrics import D_LOSS, EPOCH, G_LOSS, VAL_ERROR
from sweeps import Experiment, Options, Space, Sweep, launch
from sweeps.engine import cluster
from sweeps.engine import launch as launching
from sweeps.engine.space import suggest

SIDES = ("bare", "ours")
CONCURRENT = 2


class Clock(tune.Callback):
    """When each result came, and how many seconds of asking the search had taken until then."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def on_trial_result(self, *_: Any, **__: Any) -> None:
        self.times.append((time.perf_counter(), ASKING["seconds"]))


ASKING = {"seconds": 0.0}


def timed(ask: Any) -> Any:
    def timing(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return ask(*args, **kwargs)
        finally:
            ASKING["seconds"] += time.perf_counter() - start

    return timing


def value(config: dict[str, Any], epoch: int) -> float:
    return abs(config["lr_d"] - 3e-4) + 1 / epoch


def metrics(config: dict[str, Any], epoch: int) -> dict[str, float]:
    return {EPOCH: epoch, VAL_ERROR: value(config, epoch), D_LOSS: 1.0, G_LOSS: 2.0}


class Nothing(tune.Trainable):
    """A trial of the bare side."""

    def setup(self, config: dict[str, Any], results: int) -> None:  # type: ignore[override]
        self._results, self._epoch, self._config = results, 0, config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._epoch, self._config = 0, new_config
        return True

    def step(self) -> dict[str, Any]:
        self._epoch += 1
        return {**metrics(self._config, self._epoch), "done": self._epoch >= self._results}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        (Path(checkpoint_dir) / "epoch.json").write_text(json.dumps(self._epoch), encoding="utf-8")


def space(trial: optuna.Trial) -> None:
    suggest(trial, Space(), Config())


def bare(trials: int, results: int, folder: Path) -> Clock:
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    clock = Clock()
    sampler = optuna.samplers.TPESampler(seed=0, multivariate=True, group=True, constant_liar=True)
    OptunaSearch.suggest = timed(OptunaSearch.suggest)  # type: ignore[method-assign]
    search = OptunaSearch(space, metric=VAL_ERROR, mode="min", sampler=sampler)
    launching.quiet_libraries()
    cluster.start_ray()
    tune.Tuner(
        tune.with_resources(tune.with_parameters(Nothing, results=results), {"cpu": 1}),
        tune_config=tune.TuneConfig(
            search_alg=ConcurrencyLimiter(search, CONCURRENT),
            num_samples=trials,
            metric=VAL_ERROR,
            mode="min",
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="bare",
            storage_path=str(folder),
            verbose=0,
            callbacks=[clock],
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=2, checkpoint_frequency=1, checkpoint_at_end=True
            ),
        ),
    ).fit()
    return clock


class State:
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "epoch.json").write_text(json.dumps(self.epoch), encoding="utf-8")


class Toy(Experiment):
    """A trial of our side; subclasses train otherwise."""

    def load_data(self, config: Config) -> None:
        return None

    def objective(self, config: Config, dataset: None) -> str:
        return VAL_ERROR

    def fingerprint(self, dataset: None) -> str:
        return "none"

    def run(
        self, config: Config, dataset: None, state: State | None
    ) -> Iterator[tuple[State, dict[str, float]]]:
        plain = config.to_dict()
        for epoch in range(1, config.epochs + 1):
            yield State(epoch), metrics(plain, epoch)

    def load_state(self, folder: Path, config: Config) -> State:
        return State(0)


def ours(trials: int, results: int, folder: Path) -> Clock:
    from sweeps.engine import progress, study

    clock = Clock()
    study.Study.ask = timed(study.Study.ask)  # type: ignore[method-assign]
    result = progress.Progress.on_trial_result

    def both(self: Any, *args: Any, **kwargs: Any) -> None:
        result(self, *args, **kwargs)
        clock.on_trial_result()

    progress.Progress.on_trial_result = both  # type: ignore[method-assign]
    options = Options(
        name="ours",
        data="house-numbers",
        num_trials=trials,
        epochs=results,
        grace_epochs=results,  # none is stopped early
        image_every=results + 1,
        max_concurrent=CONCURRENT,
        output_dir=folder,
    )
    launch(Sweep(points_to_evaluate=(), experiment=Toy()), options)
    return clock


def command() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trials", type=int, default=100, help="trials of each side")
    parser.add_argument("--results", type=int, default=20, help="results of each trial")
    parser.add_argument("--parts", type=int, default=5, help="points of the curve")
    parser.add_argument("--side", choices=SIDES, help="one side alone, its times as JSON")
    options = parser.parse_args()
    check_at_least(1, trials=options.trials, results=options.results, parts=options.parts)
    if options.side:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            clock = globals()[options.side](options.trials, options.results, Path(folder))
        print(json.dumps(clock.times))
        return
    count = options.trials * options.results
    print(f"{options.trials} trials of {options.results} results, {CONCURRENT} at a time")
    print(f"{'trials':>14}" + "".join(f"{s + ' ms':>12}{'asking ms':>12}" for s in SIDES), end="")
    print(f"{'more':>8}")
    found = {}
    for side in SIDES:
        command = [sys.executable, __file__, "--side", side, "--trials", str(options.trials)]
        command += ["--results", str(options.results)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[side] = json.loads(done.stdout.splitlines()[-1])
    size = count // options.parts
    spans = [(i * size, (i + 1) * size - 1) for i in range(options.parts)]
    for first, last in [*spans, (0, count - 1)]:
        row, totals = f"{first // options.results:6} –{last // options.results + 1:6}", []
        for side in SIDES:
            (start, asked), (end, had) = found[side][first], found[side][last]
            totals.append(1e3 * (end - start) / (last - first))
            row += f"{totals[-1]:12.2f}{1e3 * (had - asked) / (last - first):12.2f}"
        print(f"{row}{totals[1] / totals[0] - 1:8.0%}")


if __name__ == "__main__":
    main(command)
