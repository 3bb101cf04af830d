"""One training in full: checkpoints, log, test, registered model; on one worker or several."""

from __future__ import annotations

import contextlib
import json
import math
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch

from ali import data, distributed
from ali.config import Config
from ali.data import Dataset, Images
from ali.errors import NonFiniteError, UserError
from ali.experiment import evaluate, metric_names
from ali.experiment import objective as own_objective
from ali.files import append_line, make_folder
from ali.metrics import COLLAPSED, EPOCH, IMAGES_PER_SECOND, format_losses
from ali.training.state import State
from sweeps.engine.endings import Ending, EndState
from sweeps.engine.experiment import AliExperiment
from sweeps.engine.final_test import Outcome, result_note, test_metrics
from sweeps.engine.objective import Direction, Objective
from sweeps.engine.options import Location
from sweeps.engine.registered_model import CHAMPION, model_name, register
from sweeps.engine.reporting import has_collapsed
from sweeps.engine.retry import AwayError, Retry, is_temporary
from sweeps.engine.tracking import runs
from sweeps.engine.tracking.client import OUTAGE_SECONDS, connect
from sweeps.engine.tracking.schema import (
    BEST_OF,
    CONFIG,
    DATA,
    KIND_BEST,
    NOTE,
    SWEEP,
    TESTED,
    TRIAL,
    TrackingContext,
    config_text,
    parameters,
)
from sweeps.engine.tracking.trial_run import TrialRun
from sweeps.engine.training_files import Metrics, TrainingFiles
from sweeps.engine.trial import CONFIG_FILE, versions

if TYPE_CHECKING:
    from mlflow.entities import Run

LOG = "training.log"  # in the training's folder: the lines of several workers
ERRORS = "test_errors.csv"  # artifact: the test error of each SVM
PICTURES = 20  # epochs with pictures in MLflow, in total
SAME_COMMAND = "nothing is lost; run the same command again once it is back"


@dataclass(frozen=True)
class TrainingContext:
    """The inputs of a full training, in each of its workers.

    Attributes:
        location: the sweep's.
        config: the experiment.
        trial: the MLflow run of the trial whose configuration it is.
        to: where it logs.
        svms: SVMs behind the test error.
        checkpoint_every: epochs between checkpoints.
        workers: each batch is split across them.
        threads: CPU threads of each; None: torch's default.
        fresh_seed: whether the seed is not the trial's; if so, it starts from scratch.
        outage_seconds: how long it waits for MLflow at its end.
    """

    location: Location
    config: Config
    trial: Run
    to: TrackingContext
    svms: int
    checkpoint_every: int
    workers: int
    threads: int | None
    fresh_seed: bool = False
    outage_seconds: float = OUTAGE_SECONDS


class FullTraining:
    """The full training of one trial's configuration, and its MLflow run."""

    def __init__(self, context: TrainingContext, dataset: Dataset) -> None:
        self.context, self.config, self.to = context, context.config, context.to
        self.storage, self.dataset = context.location.storage, dataset
        self.ask_mlflow = Retry("MLflow", context.outage_seconds, is_temporary, way_on=SAME_COMMAND)
        self.trial_id = context.trial.data.tags[TRIAL]
        self.name = self.trial_id + (f"-seed{self.config.seed}" if context.fresh_seed else "")
        self.folder = context.location.folder / f"best-{self.name}"
        self.files = TrainingFiles(self.folder, self.storage, self.config, self.say)
        self.history: list[Metrics] = []  # of each epoch
        self.experiment = AliExperiment()

    def check_resumable(self) -> None:
        """Raises UserError if an earlier call has trained more epochs, or on other data.

        To go on would replace a checkpoint and a test error by those of a shorter training.
        """
        find = partial(runs.find_trial, connect(self.to.uri), self.to, self.name, KIND_BEST)
        run = self.ask_mlflow(find)
        done = max(self.files.epochs(), int(run.data.metrics.get(EPOCH, 0)) if run else 0)
        known = (runs.data_of(run) if run else None) or self.fingerprint
        if done > self.config.epochs:
            reason = f"has {done} epochs already: give --epochs {done}, or more, to continue it"
        elif known != self.fingerprint:
            reason = f"has other data ({DATA} {known}, now {self.fingerprint}): restore them"
        else:
            return
        name, remote = self.folder.name, self.storage.remote
        copies = f" and its copies in {self.storage.folder}/{name}" if remote else ""
        delete = f", and delete its MLflow run {run.info.run_id}" if run else ""
        raise UserError(
            f"the full training {name} {reason}; to train anew, move {self.folder}{copies} away"
            f"{delete}"
        )

    def run(self, test: Images) -> Outcome:
        """Trains and tests, from where an earlier call was stopped, and registers the model.

        Raises what training raises (NonFiniteError, KeyboardInterrupt); MLflow records it. The
        caller ensures that nobody else trains it, and that it is resumable.
        """
        for note in self.notes:
            print(f"note: {note}")
        if self.objective.name != self.to.objective:
            print(
                f"note: {self.to.objective}, by which the sweep has chosen, is a function of its "
                f"script; here seeds are compared by {self.objective.name}"
            )
        self.log = self.open_log()
        with contextlib.suppress(Exception):  # retried later; mostly the run is RUNNING from now on
            self.log.open()
        try:
            if self.context.workers == 1:
                state = self.train()
            else:
                self._train_on_workers()
                state, self.history, _ = self.files.load(self.files.checkpoints())
            tested = self._test(state, test)
            if not self.context.fresh_seed:  # of several only the best, after all tests
                self.register(tested)
            ending = Ending(EndState.COMPLETED, f"trained for {tested.epoch} epochs")
            self.ask_mlflow(lambda: runs.end_run(self.log.open()[0], tested.run_id, ending))
            return tested
        except AwayError:  # MLflow cannot be told
            raise
        except BaseException as error:
            self._stopped(error)
            raise

    def open_log(self) -> TrialRun:
        """The training's MLflow run."""
        config, trial = self.config.to_dict(), self.context.trial
        # Parameters of a run cannot change in MLflow, and a later call may ask for more epochs.
        changing = ("epochs", "data_dir", "seed")
        searched = [name for name in trial.data.params if name in config and name not in changing]
        facts = {CONFIG: config_text(config), DATA: self.fingerprint, BEST_OF: trial.info.run_id}
        facts |= versions() | self.experiment.facts(self.config)
        params = parameters(config, searched)
        log = TrialRun(
            self.to, self.name, params, self.context.outage_seconds, KIND_BEST, facts, create=True
        )
        log.text(json.dumps(config, indent=1), CONFIG_FILE)
        return log

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What to know about the data, including the test files."""
        about_test = data.load_splits(self.config, ("test",)).notes
        return tuple(dict.fromkeys((*self.dataset.notes, *about_test)))

    @cached_property
    def objective(self) -> Objective:
        """What the sweep compared its trials by, or the data set's own where that is not known."""
        direction: Direction = "maximize" if self.to.direction == "maximize" else "minimize"
        asked = Objective(self.to.objective, direction, self.to.formula)
        if asked.metrics <= metric_names(self.config, self.dataset):
            return asked
        return Objective(own_objective(self.config, self.dataset), "minimize")

    @property
    def fingerprint(self) -> str:
        return self.dataset.fingerprint

    def say(self, line: str) -> None:
        """Prints a line once; of several workers the first writes it to the log instead."""
        if distributed.world_size() == 1:
            print(line, flush=True)
        elif distributed.rank() == 0:
            with contextlib.suppress(UserError):  # a failed write is no reason to end
                append_line(self.folder / LOG, line)

    # Training

    def _start(self) -> State | None:
        """The state to continue from: this training's own, or else the trial's last, if kept."""
        trial, name = self.context.trial, self.to.objective
        known = trial.data.metrics
        self.say(f"trial {self.trial_id} of {self.to.sweep}: {name} {known[name]:.4f}")
        if has_collapsed(trial):
            shown = ", ".join(f"{key} {known[key]:.2f}" for key in COLLAPSED if key in known)
            self.say(
                f"warning: its samples have collapsed ({shown}): look at its pictures before you "
                "trust it"
            )
        candidates = self.files.checkpoints()
        same_data = (known_data := runs.data_of(trial)) == self.fingerprint
        if known_data and not same_data:
            self.say(f"note: trial {self.trial_id} had other data, so none of it is continued")
        if same_data and not self.context.fresh_seed:
            kept = reversed(self.storage.checkpoints(self.trial_id))
            candidates += [(self.storage, folder) for folder in kept]
        try:
            state, history, folder = self.files.load(candidates)
        except LookupError:
            self.say("starts from the beginning")
            return None
        self.say(f"continues from epoch {state.epoch} ({folder})")
        if not history and distributed.rank() == 0:  # saved by an earlier version
            history = self.ask_mlflow(partial(self._trials_curves, state.epoch))
        self.history = history
        self._log_history()
        return state

    def _trials_curves(self, epochs: int) -> list[Metrics]:
        """The metrics of the trial's first epochs, as MLflow has them."""
        client, trial = connect(self.to.uri), self.context.trial
        rows: dict[int, Metrics] = defaultdict(dict)
        for name in trial.data.metrics:
            for metric in client.get_metric_history(trial.info.run_id, name):
                rows[metric.step][name] = metric.value
        return [row for epoch, row in sorted(rows.items()) if epoch <= epochs and EPOCH in row]

    def _log_history(self) -> None:
        """Logs the metrics of all epochs, unless they are logged."""
        if distributed.rank() == 0:
            for metrics in self.history:
                self.log.epoch(metrics, {})

    def train(self) -> State:
        """Trains to the last epoch; of several workers the first saves and logs."""
        state = start = self._start()
        for state, metrics in self.experiment.run(self.config, self.dataset, start):
            distributed.on_rank_zero(partial(self._end_epoch, state, metrics))
        assert state is not None
        return state

    def _train_on_workers(self) -> None:
        """As `train`, in workers; restarts lost ones as long as new epochs are saved."""
        from sweeps.engine.workers import train_on_workers

        threads = self.context.threads or 1
        config = {"context": replace(self.context, threads=threads)}
        log, workers = self.folder / LOG, self.context.workers
        while True:
            before = self.files.epochs()
            try:
                return train_on_workers(_worker, config, workers, threads, log, self.storage)
            except (UserError, NonFiniteError):
                raise
            except Exception as error:
                if self.files.epochs() <= before:
                    raise
                print(f"workers lost ({type(error).__name__}); restarting from checkpoint")

    def _end_epoch(self, state: State, metrics: dict[str, float]) -> None:
        epoch, total, name = state.epoch, self.config.epochs, self.objective.name
        self.objective.add_to(metrics)
        self.history.append(metrics)
        last = epoch == total
        if last or epoch % self.context.checkpoint_every == 0:
            self.files.save(state, self.history)
        pictured = last or epoch % max(1, total // PICTURES) == 0
        pictures = self.experiment.pictures(state, self.config, self.dataset) if pictured else {}
        self.log.epoch(metrics, pictures)
        value = f", {name} {metrics[name]:.4f}" if name in metrics else ""
        self.say(
            f"epoch {epoch}/{total}: {format_losses(metrics)}"
            f"{value}, {metrics[IMAGES_PER_SECOND]:.0f} images/s"
        )

    # The end

    def _test(self, state: State, test: Images) -> Outcome:
        self._log_history()  # an outage may have outlasted the queued records
        self.ask_mlflow(self.log.reopen)
        self.log.queue.flush(60 + self.context.outage_seconds)
        known, name = self.ask_mlflow(self.log.run).data, self.objective.name
        rows = (*self.history[-1:], known.metrics)
        last = next((row for row in rows if row.get(EPOCH) == state.epoch), None)
        if last is None:  # it is the trial's, of an earlier version
            last = {EPOCH: state.epoch, **evaluate(state, self.dataset, self.config)}
            self.objective.add_to(last)
            self.history.append(last)
            self.log.epoch(last, {})
        self.files.save(state, self.history)  # it may be the trial's
        if pictures := self.experiment.pictures(state, self.config, self.dataset):
            self.log.pictures(state.epoch, pictures, last.get(name))
        svms = self.context.svms
        tested = f"epoch {state.epoch}, {svms} SVMs, {self.fingerprint}"
        if known.tags.get(TESTED) == tested:  # the test split is read once for a result
            found = {k: v for k, v in known.metrics.items() if k.startswith("test_")}
        else:
            found, errors = self._measure(state, test, tested)
            self.ask_mlflow(lambda: self._log_result(tested, state.epoch, found, errors))
        self.log.queue.close()
        run = self.ask_mlflow(self.log.run)
        if lost := runs.lost_records([run]):
            print(f"note: {lost}")
        found[name] = last.get(name, math.nan)  # of an epoch's losses, which the trial has
        return Outcome(self.config, run.info.run_id, state.epoch, found)

    def _measure(self, state: State, test: Images, of: str) -> tuple[Metrics, list[float]]:
        """The test split's metrics, and the error of each SVM."""
        if kept := self.files.result(of):
            return kept
        own = own_objective(self.config, self.dataset)
        result = test_metrics(
            state.networks, self.dataset, test, self.config, own, self.context.svms
        )
        self.files.save_result(of, *result)
        return result

    def _log_result(self, of: str, epoch: int, found: Metrics, errors: list[float]) -> None:
        client, run_id = self.log.reopen()
        lines = [f"{i},{error:.6f}\n" for i, error in enumerate(errors, start=1)]
        if lines:
            client.log_text(run_id, "".join(["SVM,test error\n", *lines]), ERRORS)
        client.set_tag(run_id, NOTE, result_note(found, self.config, epoch, bool(self.notes)))
        for metric, value in found.items():
            client.log_metric(run_id, metric, value, step=epoch)
        client.set_tag(run_id, TESTED, of)

    def register(self, tested: Outcome) -> None:
        """Registers the model, unless an earlier call has, and says where everything is."""
        model, checkpoint = model_name(self.to.sweep), self.files.checkpoint
        if version := self.ask_mlflow(lambda: self._register(tested)):
            print(f"registered as model {model}, version {version} (alias {CHAMPION})")
        print(f"checkpoint: {checkpoint}")
        print(f"MLflow run: {tested.run_id} (tag {BEST_OF} = {self.context.trial.info.run_id})")

    def _register(self, tested: Outcome) -> str | None:
        client, run_id = self.log.reopen()
        tags = {SWEEP: self.to.sweep, TRIAL: self.name, DATA: self.fingerprint}
        return register(client, run_id, self.files.checkpoint, tested.found, tags, self.dataset)

    def _stopped(self, error: BaseException) -> None:
        try:
            client, run_id = self.log.open()
            interrupted = isinstance(error, KeyboardInterrupt)
            state = EndState.INTERRUPTED if interrupted else EndState.FAILED
            runs.end_run(client, run_id, Ending(state, f"{type(error).__name__}: {error}"))
            self.leave_log()
        except Exception as problem:
            print(f"note: MLflow was not told of the end: {problem}")

    def leave_log(self) -> None:
        """Ends logging within half a minute; MLflow is told first what it may lack then."""
        self.log.tell_missing()
        self.log.queue.close(timeout=30)


def _worker(config: dict[str, Any]) -> Exception | None:
    """One of several workers: trains; returns an error that another attempt would end with, too."""
    context: TrainingContext = config["context"]
    torch.set_num_threads(context.threads or 1)
    try:
        training = FullTraining(context, data.load(context.config))
        make_folder(training.folder)  # on this machine
        if distributed.rank() > 0:
            training.train()
            return None
        training.log = training.open_log()
        try:
            training.train()
        except BaseException:
            training.leave_log()
            raise
        training.log.queue.close()
    except (UserError, NonFiniteError) as error:
        return error
    return None
