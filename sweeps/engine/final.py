"""Trains a sweep's best configuration in full, with one or more seeds; tests it once at the end."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ali import data, distributed
from ali.arguments import Group
from ali.config import Config
from ali.data import Images
from ali.errors import NonFiniteError, UserError
from ali.files import make_folder
from ali.lock import LOCK, folder_lock
from ali.output import lossy_output
from sweeps.engine.endings import END_STATE, EndState
from sweeps.engine.final_test import Outcome, best_of, over_seeds, result_table, seeds_table
from sweeps.engine.full_training import SAME_COMMAND, FullTraining, TrainingContext
from sweeps.engine.journal import ALI
from sweeps.engine.options import BEST_OPTIONS, JOURNAL, Location
from sweeps.engine.results import results
from sweeps.engine.retry import Retry, is_temporary
from sweeps.engine.scripts import here, running_command
from sweeps.engine.tracking import runs
from sweeps.engine.tracking.client import OUTAGE_SECONDS, connect, open_client
from sweeps.engine.tracking.moved import follow_move
from sweeps.engine.tracking.schema import EXPERIMENT_CLASS, PARENT, TrackingContext
from sweeps.engine.tracking.search import restore

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@dataclass(frozen=True, kw_only=True)
class FinalOptions(Location):
    """Options of the full training; it goes to <output-dir>/<name>/best-<trial>."""

    GROUPS: ClassVar[tuple[Group, ...]] = (
        Group("common", "--name svhn --epochs 100 --seeds 4", "name trial epochs seeds svms"),
        Group("resource", "--name svhn --workers 2", "workers threads"),
        Group(
            "storage",
            "--name svhn --data-dir DIR --checkpoint-every 5",
            "data_dir checkpoint_every output_dir storage_path tracking_uri outage_seconds",
        ),
    )

    trial: int | None = None
    """Number of a completed trial to train instead of the best."""
    epochs: int | None = None
    """Epochs in total, those of the trial included; default: the sweep's full budget."""
    data_dir: Path | None = None
    """Folder with the data set's official files; default: the sweep's."""
    svms: int = 100
    """L2-SVMs that the test error is averaged over, each trained on its own labelled draw (§4.4);
    for labelled data."""
    checkpoint_every: int = 1
    """Epochs between checkpoints."""
    seeds: int | None = None
    """Train this many times from scratch, each with a seed that the sweep has not used; report the
    test errors as mean ± std and register the best by validation. Default: one training with the
    trial's own seed, continued from its checkpoint."""
    workers: int = 1
    """Workers that each batch is split across (data parallel, Ray Train): a GPU each if the cluster
    has any."""
    threads: int | None = None
    """CPU threads; default: all cores, or with several workers one each."""
    outage_seconds: float = OUTAGE_SECONDS
    """Seconds to wait for the MLflow server if it is unavailable at the start or at the end;
    training itself does not wait."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "svms", "checkpoint_every", "seeds", "workers", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        if self.trial is not None and self.trial < 0:
            raise UserError(f"--trial must be at least 0, not {self.trial}")
        if not self.outage_seconds >= 0:
            raise UserError(f"--outage-seconds must be at least 0, not {self.outage_seconds}")

    def save(self) -> None:
        """Writes them to the sweep's folder, from which --config repeats them, all or nothing."""
        make_folder(self.folder)
        file = self.folder / BEST_OPTIONS
        what = f"The options of the full training of sweep {self.name}'s best. To repeat it:"
        self.write(file, what, running_command("--config", here(file)))


@lossy_output()
def train_best(options: FinalOptions) -> int:
    """Finds the best trial, trains it in full, tests it, registers it; returns the exit code."""
    import torch

    uri = options.uri
    options = replace(options.with_saved_storage(), output_dir=options.output_dir.resolve())
    options.check_storage()
    client = connect(uri, existing=True)
    ask = Retry("MLflow", options.outage_seconds, is_temporary, way_on=SAME_COMMAND)
    experiment = ask(lambda: runs.experiment_of(client, options.name))
    ask(lambda: follow_move(client, experiment, options.output_dir))
    trial = ask(lambda: run_to_train(options, client, experiment))
    config = Config.from_dict(runs.config_of(trial))
    data_dir = options.data_dir and options.data_dir.resolve()
    changes: dict[str, Any] = {"epochs": options.epochs, "data_dir": data_dir}
    config = config.replace(**{k: v for k, v in changes.items() if v is not None})
    distributed.check_world_size(config.batch_size, options.workers)
    if options.threads:
        torch.set_num_threads(options.threads)
    stop_on_signals()
    to = TrackingContext(
        uri, experiment, options.name, trial.data.tags[PARENT], runs.objective_of(trial),
        direction=runs.direction_of(trial), formula=runs.formula_of(trial),
    )  # fmt: skip
    context = TrainingContext(
        location=Location(
            name=options.name,
            output_dir=options.output_dir,
            storage_path=options.storage_path,
            tracking_uri=options.tracking_uri,
        ),
        config=config,
        trial=trial,
        to=to,
        svms=options.svms,
        checkpoint_every=options.checkpoint_every,
        workers=options.workers,
        threads=options.threads,
        outage_seconds=options.outage_seconds,
    )
    contexts = [context]
    if options.seeds is not None:
        # Each has a labelled draw of its own, for a model that is trained with one.
        seeds = enumerate(fresh_seeds(config.seed, options.seeds))
        fresh = [config.replace(seed=seed, draw=i) for i, seed in seeds]
        contexts = [replace(context, config=one, fresh_seed=True) for one in fresh]
    dataset, test = data.load(config), data.load_test(config)  # bad files are found before training
    trainings = [FullTraining(one, dataset) for one in contexts]
    with contextlib.ExitStack() as locks:
        for training in trainings:
            locks.enter_context(held(training.folder))
        for training in trainings:
            training.check_resumable()
        options.save()
        try:
            trained = [(training, train(training, test)) for training in trainings]
        except NonFiniteError as error:
            print(f"training diverged: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("stopped; run the same command again to resume from the last checkpoint")
            return 130
        return finish(trained)


def stop_on_signals() -> None:
    """Makes every stop signal a KeyboardInterrupt; between epochs it loses nothing."""
    # A process that a script starts in the background inherits SIGINT as ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(number: int, frame: Any) -> None:
        # once: `timeout` and systemd signal twice, and would cut short what the first one began
        for each in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, interrupt)


def fresh_seeds(seed: int, count: int) -> list[int]:
    """Seeds that no trial of a sweep has: a trial's seed is the sweep's plus its number."""
    return [seed + 1_000_000 * (i + 1) for i in range(count)]


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """In the block, nobody else trains in this folder; it is removed if no training has begun."""
    make_folder(folder)
    with folder_lock(folder, f"the full training {folder.name}"):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if [path.name for path in folder.iterdir()] == [LOCK]:
                    (folder / LOCK).unlink()
                    folder.rmdir()


def train(training: FullTraining, test: Images) -> Outcome | NonFiniteError:
    """Runs a full training and its test; one of several that diverges does not end the others."""
    try:
        return training.run(test)
    except NonFiniteError as error:
        if not training.context.fresh_seed:
            raise
        print(f"seed {training.config.seed} diverged: {error}")
        return error


def finish(trained: Sequence[tuple[FullTraining, Outcome | NonFiniteError]]) -> int:
    """Prints the trainings' results; of several, registers the best by validation."""
    tested = [(training, found) for training, found in trained if isinstance(found, Outcome)]
    if not tested:
        print(f"all {len(trained)} seeds diverged: nothing was registered")
        return 1
    objective = tested[0][0].objective
    outcomes = [found for _, found in tested]
    best = best_of(outcomes, objective.name, objective.maximize)
    training = next(training for training, found in tested if found is best)
    if training.context.fresh_seed:
        training.register(best)
    print(result_table(best.found, best.config, best.epoch, bool(training.notes)))
    if training.context.fresh_seed:
        ended = [(t.config.seed, found) for t, found in trained]
        print(seeds_table(ended, objective.name, objective.maximize))
        training.ask_mlflow(lambda: _log_over_seeds(training.to, tested))
    return 0


def _log_over_seeds(to: TrackingContext, tested: Sequence[tuple[FullTraining, Outcome]]) -> None:
    client = open_client(to.uri)
    restore(client, to.parent_run_id)
    for name, value in over_seeds([found.found for _, found in tested]).items():
        client.log_metric(to.parent_run_id, name, value)


def run_to_train(options: FinalOptions, client: MlflowClient, experiment: str) -> Run:
    """The MLflow run of the trial that is asked for, or of the best, as its study defines "best".

    The study is read if it is in the output folder; otherwise MLflow has what its driver wrote.
    Raises UserError if that trial, or none, has completed, or trials are not ALI's.
    """
    from sweeps.engine.study import trial_id

    parent = runs.require_sweep(client, experiment, options.name)
    if (other := parent.data.tags.get(EXPERIMENT_CLASS, ALI)) != ALI:
        raise UserError(
            f"the trials of sweep {options.name!r} are an experiment of your own, {other}, and "
            "best.py trains ALI's: train it with your own code"
        )
    to = TrackingContext(options.uri, experiment, options.name, parent.info.run_id, "")

    def find(name: str) -> Run | None:
        return runs.find_trial(client, to, name) or runs.restore_trial(client, to, name)

    if options.trial is not None:
        name = trial_id(options.trial)
        run = find(name)
        if run is None or run.data.tags.get(END_STATE) != EndState.COMPLETED.value:
            raise UserError(
                f"--trial {name}: no such trial of sweep {options.name!r} has completed "
                "its full budget; the report names those that have"
            )
        return run
    if (options.folder / JOURNAL).exists() and not options.storage.remote:
        ended = [trial for trial in results(options) if trial.complete]
        ids = [trial.trial_id for trial in ended if trial.confirms is None]
    else:
        ids = runs.best_trials(parent)
    for best in ids[:1]:
        if run := find(best):
            return run
    raise UserError(
        f"no trial of sweep {options.name!r} has completed its full budget yet: resume it "
        "(--resume), also to bring MLflow up to date if an earlier version ran it"
    )
