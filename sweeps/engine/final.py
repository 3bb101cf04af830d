"""Trains the best trial of a sweep in full, and reads the test split: once, here and nowhere else.

    python sweeps/best.py --name NAME [--epochs E] [--data-dir D] [--workers N]

The same command again goes on where it was stopped, with any number of workers.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.table import Table

from ali import distributed
from ali.config import Config
from ali.errors import NonFiniteError, UserError
from ali.evaluation.table1 import TABLE_1
from ali.files import make_folder
from ali.metrics import SAMPLE_DIVERSITY, TEST_ERROR_MEAN, TEST_ERROR_STD, VAL_ERROR
from sweeps.engine import tracking
from sweeps.engine.driver import (
    NODE_CPU,
    only_driver,
    output_folder,
    refuse_dead_cluster,
    start_ray,
)
from sweeps.engine.reporting import collapsed
from sweeps.engine.storage import Storage, storage_address

if TYPE_CHECKING:
    from mlflow.entities import Run

    from ali.training.state import State

LOG = "training.log"  # in the training's folder: what several workers say
MAX_FAILURES = 10  # workers or machines lost in one training before it gives up
BEST_OF = "best_of_run"  # tag: the run id of the trial whose configuration was trained


@dataclass(frozen=True)
class Options:
    """Options of the full training."""

    name: str
    """Name of the sweep."""
    epochs: int | None = None
    """Epochs in all; default: the sweep's own full budget."""
    data_dir: Path | None = None
    """Folder with the data set's official files; default: the sweep's."""
    svms: int = 100
    """L2-SVMs, each on its own labelled draw, behind the test error (§4.4); of data with labels."""
    checkpoint_every: int = 1
    """Epochs between checkpoints."""
    workers: int = 1
    """Processes that share each batch, through Ray Train: a GPU each where the cluster has any."""
    threads: int | None = None
    """CPU threads; default: all cores, and of several workers one each."""
    output_dir: Path = field(default_factory=output_folder)
    """Folder of all sweeps; the training goes to <output-dir>/<name>/best-<trial>."""
    storage_path: str | None = field(default_factory=storage_address)
    """Where the sweep keeps its checkpoints, if not in --output-dir, and this training copies of
    its own; default: $ALI_STORAGE_PATH."""
    tracking_uri: str | None = None
    """MLflow server; default: $MLFLOW_TRACKING_URI, or mlflow.db in --output-dir."""

    def storage(self) -> Storage:
        return Storage.at(self.storage_path or self.output_dir, self.name)

    def __post_init__(self) -> None:
        for name in ("epochs", "svms", "checkpoint_every", "workers", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {value}")


def train_best(options: Options) -> int:
    """Finds the best trial, trains it in full, tests it, registers it; returns the exit code."""
    import torch

    options = replace(options, output_dir=options.output_dir.resolve())
    options.storage().check()
    given = options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    uri = given or tracking.default_uri(options.output_dir)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise UserError(
            f"there is no MLflow database {uri.removeprefix('sqlite:///')}: run a sweep"
        )
    client = tracking.connect(uri)
    experiment = tracking.experiment_id(client, options.output_dir)
    trial = tracking.best_trial(client, experiment, options.name)
    config = Config.from_dict(json.loads(trial.data.tags[tracking.CONFIG]))
    data_dir = options.data_dir and options.data_dir.resolve()
    changes: dict[str, Any] = {"epochs": options.epochs, "data_dir": data_dir}
    config = config.replace(**{k: v for k, v in changes.items() if v is not None})
    distributed.check(config.batch_size, options.workers)
    if options.threads:
        torch.set_num_threads(options.threads)
    # A stop between two epochs, whichever signal asks for it, loses nothing.
    # A process that a script starts in the background comes with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    to = tracking.Destination(
        uri,
        experiment,
        options.name,
        trial.data.tags[tracking.PARENT],
        tracking.objective_of(trial),
    )
    training = _Training(options, config, trial, to)
    make_folder(training.folder)
    with only_driver(training.folder, f"the full training of {options.name!r}"):
        return training.run()


class _Training:
    """The full training of one trial's configuration, and its MLflow run."""

    def __init__(
        self, options: Options, config: Config, trial: Run, to: tracking.Destination
    ) -> None:
        from ali import data
        from sweeps.engine.trial import versions

        self.options, self.config, self.trial = options, config, trial
        self.storage = options.storage()
        self.dataset = data.load(config)
        self.test = data.load_test(config)  # bad test files are found before a night of training
        self.trial_id = trial.data.tags[tracking.TRIAL]
        self.folder = options.output_dir / options.name / f"best-{self.trial_id}"
        params = {**config.to_dict(), "data_fingerprint": self.dataset.fingerprint, **versions()}
        # Parameters of a run cannot change in MLflow, and a later call may ask for more epochs.
        for changing in ("epochs", "data_dir"):
            del params[changing]
        self.to, self.params = to, params

    def run(self) -> int:
        for note in self.dataset.notes:
            print(f"note: {note}")
        self.log = self._open()
        try:
            self._finish(self.train() if self.options.workers == 1 else self._together())
        except BaseException as error:
            self._stopped(error)
            if isinstance(error, KeyboardInterrupt):
                print("stopped; the same command goes on from the last checkpoint")
                return 130
            raise
        return 0

    def _open(self) -> tracking.TrialRun:
        return tracking.TrialRun(
            self.to,
            self.trial_id,
            self.params,
            kind=tracking.KIND_BEST,
            create=True,
            tags={
                BEST_OF: self.trial.info.run_id,
                tracking.CONFIG: json.dumps(self.config.to_dict()),
            },
        )

    def _together(self) -> State:
        """`train` in each of several processes, which start anew where one of them is lost.

        Raises UserError where the cluster cannot hold them, and what the training raises.
        """
        from ray import train
        from ray.train.torch import TorchTrainer

        workers, threads = self.options.workers, self.options.threads or 1
        refuse_dead_cluster()
        has = start_ray()
        gpus = int(has.get("GPU", 0))
        if workers * threads > has["CPU"] or threads > has[NODE_CPU] or 0 < gpus < workers:
            raise UserError(
                f"{workers} workers of {threads} threads do not fit on {has['CPU']:g} CPUs and "
                f"{gpus} GPUs: lower --workers or --threads"
            )
        told = (replace(self.options, threads=threads), self.config, self.trial, self.to)
        trainer = TorchTrainer(
            _worker,  # type: ignore[arg-type]  # its type denies that it may return
            train_loop_config={"told": told},
            scaling_config=train.ScalingConfig(
                num_workers=workers, use_gpu=gpus > 0, resources_per_worker={"CPU": threads}
            ),
            run_config=train.RunConfig(
                name="workers",
                storage_path=f"{self.storage.folder}/{self.folder.name}",
                storage_filesystem=self.storage.filesystem if self.storage.remote else None,
                failure_config=train.FailureConfig(max_failures=MAX_FAILURES),
            ),
        )
        print(f"{workers} workers share each batch; log: {self.folder / LOG}", flush=True)
        ctrl_c = signal.getsignal(signal.SIGINT)
        try:
            with _printed(self.folder / LOG):
                failure = trainer.fit().return_value  # type: ignore[attr-defined]
        except SystemExit:  # so Ray Train ends after a Ctrl-C
            raise KeyboardInterrupt from None
        except train.WorkerGroupError as error:
            raise next(iter(error.worker_failures.values())) from error
        finally:
            signal.signal(signal.SIGINT, ctrl_c)
        if failure is not None:
            raise failure
        found = self._load(self._own())
        assert found is not None
        return found[0]

    def say(self, line: str) -> None:
        """Prints a line, once; of several workers the first writes it to the log instead."""
        if distributed.workers() == 1:
            print(line, flush=True)
        elif distributed.rank() == 0:
            with (self.folder / LOG).open("a") as file:
                print(line, file=file)

    def _begin(self) -> State | None:
        """The state to go on from: this training's own, or else the trial's last, if it is here."""
        from sweeps.engine.trial import STATE

        known, name = self.trial.data.metrics, self.to.objective
        self.say(f"best trial of {self.options.name}: {self.trial_id}, {name} {known[name]:.4f}")
        if collapsed(self.trial):
            self.say(
                f"warning: its samples have collapsed ({SAMPLE_DIVERSITY} "
                f"{known[SAMPLE_DIVERSITY]:.2f}): look at its pictures before you trust it"
            )
        candidates = self._own()
        if self.trial.data.params.get("data_fingerprint") == self.dataset.fingerprint:
            for folder in reversed(self.storage.checkpoints(self.trial_id)):
                candidates.append((self.storage, folder, STATE))
        if (found := self._load(candidates)) is None:
            self.say("starts from the beginning")
            return None
        state, folder = found
        self.say(f"goes on from epoch {state.epoch} ({folder})")
        return state

    def _own(self) -> list[tuple[Storage, str, str]]:
        """Where this training's own checkpoints are, the newest first.

        Of a bucket the copies, which workers on several machines see alike.
        """
        local = self.folder / "checkpoint"
        here = [(Storage.at(local, ""), str(local), "")] if local.exists() else []
        if not self.storage.remote:
            return here
        copies = reversed(self.storage.checkpoints(self.folder.name))
        return [(self.storage, folder, "") for folder in copies] or here

    def _load(self, candidates: list[tuple[Storage, str, str]]) -> tuple[State, str] | None:
        """The first that is whole and not past the last epoch, if there is one, and its folder."""
        from ali.training.state import State
        from ali.training.step import device

        for storage, folder, inner in candidates:
            try:
                with storage.local(folder) as local:
                    state = State.load(local / inner, device(), self.config)
            except (UserError, OSError) as problem:
                self.say(f"note: {problem}")
                continue
            if state.epoch <= self.config.epochs:
                return state, folder
        return None

    def train(self) -> State:
        """Trains to the last epoch; of several workers the first saves and logs."""
        from ali.experiment import run

        state = start = self._begin()
        for state, metrics in run(self.config, dataset=self.dataset, state=start):
            distributed.first(partial(self._keep, state, metrics))
        assert state is not None
        return state

    def _keep(self, state: State, metrics: dict[str, float]) -> None:
        from sweeps.engine.trial import ALI

        epoch, total, name = state.epoch, self.config.epochs, self.to.objective
        last = epoch == total
        if last or epoch % self.options.checkpoint_every == 0:
            state.save(self.folder / "checkpoint")
            self._copy(epoch)
        pictured = last or epoch % max(1, total // 20) == 0
        self.log.epoch(metrics, ALI.pictures(state, self.config) if pictured else {})
        value = f", {name} {metrics[name]:.4f}" if name in metrics else ""
        self.say(
            f"epoch {epoch}/{total}: d {metrics['d_loss']:.3f} g {metrics['g_loss']:.3f}"
            f"{value}, {metrics['images_per_second']:.0f} images/s"
        )

    def _copy(self, epoch: int) -> None:
        """Copies the checkpoint into the sweep's bucket, if it has one, and keeps the one before.

        A bucket that is away is tried again with the next checkpoint.
        """
        if not self.storage.remote:
            return
        try:
            self.storage.upload(
                self.folder / "checkpoint", f"{self.folder.name}/checkpoint_{epoch:06d}"
            )
            for old in self.storage.checkpoints(self.folder.name)[:-2]:
                self.storage.delete(old)
        except (OSError, UserError) as problem:
            self.say(f"note: no copy of the checkpoint was written: {problem}")

    def _finish(self, state: State) -> None:
        client, run_id = self.log.open()
        self.log.courier.flush(60)
        known = client.get_run(run_id).data
        tested = f"epoch {state.epoch}, {self.options.svms} SVMs, {self.dataset.fingerprint}"
        if known.tags.get("tested") == tested:  # the test split is read once for a result
            found = {k: v for k, v in known.metrics.items() if k.startswith("test_")}
        else:
            found = self._test(state)
            for name, value in found.items():
                client.log_metric(run_id, name, value, step=state.epoch)
            client.set_tag(run_id, "tested", tested)
            self._register(client, run_id, state)
        self.log.courier.close()
        tracking.end_run(client, run_id, tracking.COMPLETED, f"trained for {state.epoch} epochs")
        print(self._told(state, found))
        print(f"checkpoint: {self.folder / 'checkpoint'}")
        print(f"MLflow run: {run_id} (tag {BEST_OF} = {self.trial.info.run_id})")

    def _test(self, state: State) -> dict[str, float]:
        """What the test split says, by metric: of §4.4's protocol, or without labels of quality."""
        from ali.evaluation import protocol, quality

        networks, config, size = state.networks, self.config, len(self.test)
        if self.to.objective != VAL_ERROR:
            print(f"testing the samples against {size} test images")
            dataset = replace(self.dataset, valid=self.test)
            found = quality.measure(networks, dataset, config)
            return {f"test_{name}": value for name, value in found.items()}
        print(f"testing with {self.options.svms} SVMs on {size} test images")
        errors = protocol.test_errors(
            networks, self.dataset, self.test, config, draws=self.options.svms
        )
        std = errors.std(ddof=1 if len(errors) > 1 else 0)
        return {TEST_ERROR_MEAN: float(errors.mean()), TEST_ERROR_STD: float(std)}

    def _register(self, client: Any, run_id: str, state: State) -> None:
        from mlflow.exceptions import MlflowException

        state.save(self.folder / "checkpoint")
        client.log_artifacts(run_id, str(self.folder / "checkpoint"), "model")
        name = f"ali-{self.options.name}"
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{client.get_run(run_id).info.artifact_uri}/model"
        made = client.create_model_version(name, source, run_id)
        print(f"registered as model {name}, version {made.version}")

    def _stopped(self, error: BaseException) -> None:
        try:
            client, run_id = self.log.open()
            interrupted = isinstance(error, KeyboardInterrupt)
            end = tracking.INTERRUPTED if interrupted else tracking.FAILED
            tracking.end_run(client, run_id, end, f"{type(error).__name__}: {error}")
            self.log.courier.close(timeout=30)
        except Exception as problem:
            print(f"note: MLflow was not told of the end: {problem}")

    def _told(self, state: State, found: dict[str, float]) -> str:
        """The result as text: on house numbers beside the published ones, else a line a metric."""
        config = self.config
        if config.data not in ("svhn", "house-numbers"):
            lines = [f"{config.data}, {state.epoch} epochs:"]
            return "\n".join(lines + [f"  {name} {value:.4f}" for name, value in found.items()])
        mean, std = found[TEST_ERROR_MEAN], found[TEST_ERROR_STD]
        official = config.data == "svhn" and not self.dataset.notes
        table = Table(
            title="Table 1: test error with 1000 labels, as published, and this run",
            title_justify="left",
        )
        table.add_column("model")
        table.add_column("error", justify="right")
        for row in TABLE_1:
            table.add_row(*row)
        table.add_section()
        table.add_row(
            f"this run ({config.data}, {config.labels} labels, {state.epoch} epochs)",
            f"{mean:.2%} (± {std:.2%})".replace("%", " %"),
        )
        console = Console(width=100, color_system=None)
        with console.capture() as capture:
            console.print(table)
            if not official:
                console.print(
                    "Not comparable with the published rows: this data is not the official SVHN."
                )
        return capture.get()


@contextlib.contextmanager
def _printed(log: Path) -> Iterator[None]:
    """Prints meanwhile the lines that workers, wherever they run, append to a file."""
    log.touch()
    ended = threading.Event()

    def follow(file: TextIO) -> None:
        while True:
            last = ended.wait(0.5)
            if text := file.read():
                print(text, end="", flush=True)
            if last:
                return

    with log.open() as file:
        file.seek(0, os.SEEK_END)
        thread = threading.Thread(target=follow, args=(file,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _worker(config: dict[str, Any]) -> Exception | None:
    """One of several: trains, and returns what another try would end with too."""
    import torch

    options, *rest = config["told"]
    torch.set_num_threads(options.threads)
    try:
        training = _Training(options, *rest)
        make_folder(training.folder)  # on this machine
        if distributed.rank() == 0:
            training.log = training._open()
        training.train()
        if distributed.rank() == 0:
            training.log.courier.close()
    except (UserError, NonFiniteError) as error:
        return error
    return None
