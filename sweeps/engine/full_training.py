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
from ali.metrics import EPOCH, IMAGES_PER_SECOND, SAMPLE_DIVERSITY, format_losses
from ali.training.checkpoint import find_checkpoint, read_manifest
from ali.training.state import State
from ali.training.step import device
from sweeps.engine.endings import Ending, EndState
from sweeps.engine.experiment import AliExperiment
from sweeps.engine.final_test import Outcome, result_note, test_metrics
from sweeps.engine.objective import Direction, Objective
from sweeps.engine.options import Location
from sweeps.engine.registered_model import CHAMPION, model_name, register
from sweeps.engine.reporting import has_collapsed
from sweeps.engine.storage import Storage
from sweeps.engine.tracking import runs
from sweeps.engine.tracking.client import connect
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
from sweeps.engine.trial import CONFIG_FILE, versions

if TYPE_CHECKING:
    from mlflow.entities import Run

LOG = "training.log"  # in the training's folder: the lines of several workers
CHECKPOINT = "checkpoint"  # in the training's folder
ERRORS = "test_errors.csv"  # artifact: the test error of each SVM
PICTURES = 20  # epochs with pictures in MLflow, in total


@dataclass(frozen=True)
class TrainingContext:
    """What a full training is given, in every one of its workers.

    Attributes:
        location: of the sweep.
        config: the experiment.
        trial: the MLflow run of the trial whose configuration it is.
        to: where it logs.
        svms: SVMs behind the test error.
        checkpoint_every: epochs between checkpoints.
        workers: that each batch is split across.
        threads: CPU threads of each; None: torch's default.
        fresh_seed: whether the seed is not the trial's: nothing of the trial is continued.
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


class FullTraining:
    """The full training of one trial's configuration, and its MLflow run."""

    def __init__(self, context: TrainingContext, dataset: Dataset) -> None:
        self.context, self.config, self.to = context, context.config, context.to
        self.storage, self.dataset = context.location.storage, dataset
        self.trial_id = context.trial.data.tags[TRIAL]
        self.name = self.trial_id + (f"-seed{self.config.seed}" if context.fresh_seed else "")
        self.folder = context.location.folder / f"best-{self.name}"
        self.experiment = AliExperiment()

    def check_resumable(self) -> None:
        """Raises UserError if an earlier call has trained more epochs, or on other data.

        To go on would replace a checkpoint and a test error by those of a shorter training.
        """
        run = runs.find_trial(connect(self.to.uri), self.to, self.name, KIND_BEST)
        done = max(self.saved_epochs(), int(run.data.metrics.get(EPOCH, 0)) if run else 0)
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

        Raises what training raises (NonFiniteError, KeyboardInterrupt); MLflow is told of it.
        """
        self.check_resumable()
        for note in self.notes:
            print(f"note: {note}")
        if self.objective.name != self.to.objective:
            print(
                f"note: {self.to.objective}, by which the sweep has chosen, is a function of its "
                f"script; here seeds are compared by {self.objective.name}"
            )
        self.log = self.open_log()
        try:
            if self.context.workers == 1:
                state = self.train()
            else:
                self._train_on_workers()
                state, _ = self.load(self.own_checkpoints())
            tested = self._test(state, test)
            if not self.context.fresh_seed:  # of several the best is, when all have been tested
                self.register(tested)
            ending = Ending(EndState.COMPLETED, f"trained for {tested.epoch} epochs")
            runs.end_run(self.log.open()[0], tested.run_id, ending)
            return tested
        except BaseException as error:
            self._stopped(error)
            raise

    def open_log(self) -> TrialRun:
        """The training's MLflow run."""
        config, trial = self.config.to_dict(), self.context.trial
        # Parameters of a run cannot change in MLflow, and a later call may ask for more epochs.
        changing = ("epochs", "data_dir", "seed")
        searched = [name for name in trial.data.params if name in config and name not in changing]
        facts = {CONFIG: config_text(config), DATA: self.fingerprint, **versions()}
        facts[BEST_OF] = trial.info.run_id
        params = parameters(config, searched)
        log = TrialRun(self.to, self.name, params, kind=KIND_BEST, create=True, tags=facts)
        log.text(json.dumps(config, indent=1), CONFIG_FILE)
        return log

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What is to know about the data, the test files included."""
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
            with contextlib.suppress(UserError):  # what cannot be said is no reason to end
                append_line(self.folder / LOG, line)

    # Checkpoints

    def own_checkpoints(self) -> list[tuple[Storage, str]]:
        """This training's own checkpoints, the newest first.

        With a bucket its copies, which workers on several machines see alike.
        """
        local = self.folder / CHECKPOINT
        here = [(Storage.at(local, ""), str(local))] if local.exists() else []
        if not self.storage.remote:
            return here
        copies = reversed(self.storage.checkpoints(self.folder.name))
        return [(self.storage, folder) for folder in copies] or here

    def saved_epochs(self) -> int:
        """Epochs in its own checkpoints; 0 if there is none that can be read."""
        epochs = 0
        for storage, folder in self.own_checkpoints():
            with contextlib.suppress(UserError, OSError), storage.local(folder) as local:
                epochs = max(epochs, read_manifest(find_checkpoint(local)).epoch)
        return epochs

    def load(self, candidates: list[tuple[Storage, str]]) -> tuple[State, str]:
        """The first that is intact and not past the last epoch, and its folder.

        Raises LookupError if there is none.
        """
        for storage, folder in candidates:
            try:
                with storage.local(folder) as local:
                    state = State.load(find_checkpoint(local), device(), self.config)
            except (UserError, OSError) as problem:
                self.say(f"note: {problem}")
                continue
            if state.epoch <= self.config.epochs:
                return state, folder
        raise LookupError

    def _start(self) -> State | None:
        """The state to continue from: this training's own, or else the trial's last, if kept."""
        trial, name = self.context.trial, self.to.objective
        known = trial.data.metrics
        self.say(f"best trial of {self.to.sweep}: {self.trial_id}, {name} {known[name]:.4f}")
        if has_collapsed(trial):
            self.say(
                f"warning: its samples have collapsed ({SAMPLE_DIVERSITY} "
                f"{known[SAMPLE_DIVERSITY]:.2f}): look at its pictures before you trust it"
            )
        candidates = self.own_checkpoints()
        same_data = (known_data := runs.data_of(trial)) == self.fingerprint
        if known_data and not same_data:
            self.say(f"note: trial {self.trial_id} had other data, so none of it is continued")
        if same_data and not self.context.fresh_seed:
            kept = reversed(self.storage.checkpoints(self.trial_id))
            candidates += [(self.storage, folder) for folder in kept]
        try:
            state, folder = self.load(candidates)
        except LookupError:
            self.say("starts from the beginning")
            return None
        self.say(f"continues from epoch {state.epoch} ({folder})")
        self._copy_curves(state.epoch)
        return state

    def _copy_curves(self, epochs: int) -> None:
        """Logs the trial's metrics of the epochs that are continued, unless they are logged."""
        if distributed.rank() != 0:
            return
        client, trial = connect(self.to.uri), self.context.trial
        rows: dict[int, dict[str, float]] = defaultdict(dict)
        for name in trial.data.metrics:
            for metric in client.get_metric_history(trial.info.run_id, name):
                rows[metric.step][name] = metric.value
        for epoch, metrics in sorted(rows.items()):
            if epoch <= epochs and EPOCH in metrics:
                self.log.epoch(metrics, {})

    def train(self) -> State:
        """Trains to the last epoch; of several workers the first saves and logs."""
        state = start = self._start()
        for state, metrics in self.experiment.run(self.config, self.dataset, start):
            distributed.on_rank_zero(partial(self._end_epoch, state, metrics))
        assert state is not None
        return state

    def _train_on_workers(self) -> None:
        """As `train`, in workers; they may be lost any number of times if new epochs are saved."""
        from sweeps.engine.workers import train_on_workers

        threads = self.context.threads or 1
        config = {"context": replace(self.context, threads=threads)}
        log, workers = self.folder / LOG, self.context.workers
        while True:
            before = self.saved_epochs()
            try:
                return train_on_workers(_worker, config, workers, threads, log, self.storage)
            except (UserError, NonFiniteError):
                raise
            except Exception as error:
                if self.saved_epochs() <= before:
                    raise
                print(f"workers lost ({type(error).__name__}); restarting from checkpoint")

    def _end_epoch(self, state: State, metrics: dict[str, float]) -> None:
        epoch, total, name = state.epoch, self.config.epochs, self.objective.name
        self.objective.add_to(metrics)
        last = epoch == total
        if last or epoch % self.context.checkpoint_every == 0:
            state.save(self.folder / CHECKPOINT)
            self._copy(epoch)
        pictured = last or epoch % max(1, total // PICTURES) == 0
        pictures = self.experiment.pictures(state, self.config, self.dataset) if pictured else {}
        self.log.epoch(metrics, pictures)
        value = f", {name} {metrics[name]:.4f}" if name in metrics else ""
        self.say(
            f"epoch {epoch}/{total}: {format_losses(metrics)}"
            f"{value}, {metrics[IMAGES_PER_SECOND]:.0f} images/s"
        )

    def _copy(self, epoch: int) -> None:
        """Copies the checkpoint into the sweep's bucket, if it has one, and keeps the previous one.

        If the bucket cannot be reached, the next checkpoint is copied.
        """
        if not self.storage.remote:
            return
        name = f"{self.folder.name}/checkpoint_{epoch:06d}"
        try:
            self.storage.upload(self.folder / CHECKPOINT, name)
            for old in self.storage.checkpoints(self.folder.name)[:-2]:
                self.storage.delete(old)
        except (OSError, UserError) as problem:
            self.say(f"note: no copy of the checkpoint was written: {problem}")

    # The end

    def _test(self, state: State, test: Images) -> Outcome:
        client, run_id = self.log.open()
        self.log.queue.flush(60)
        state.save(self.folder / CHECKPOINT)  # it may be the trial's
        known, name = client.get_run(run_id).data, self.objective.name
        last = known.metrics
        if last.get(EPOCH) != state.epoch:  # the trial's, or a kill came after the checkpoint
            last = {EPOCH: state.epoch, **evaluate(state, self.dataset, self.config)}
            self.objective.add_to(last)
            self.log.epoch(last, {})
        if pictures := self.experiment.pictures(state, self.config, self.dataset):
            self.log.pictures(state.epoch, pictures, last.get(name))
        svms = self.context.svms
        tested = f"epoch {state.epoch}, {svms} SVMs, {self.fingerprint}"
        if known.tags.get(TESTED) == tested:  # the test split is read once for a result
            found = {k: v for k, v in known.metrics.items() if k.startswith("test_")}
        else:
            own = own_objective(self.config, self.dataset)
            found, errors = test_metrics(state.networks, self.dataset, test, self.config, own, svms)
            runs.restore(client, run_id)
            lines = [f"{i},{error:.6f}\n" for i, error in enumerate(errors, start=1)]
            if lines:
                client.log_text(run_id, "".join(["SVM,test error\n", *lines]), ERRORS)
            note = result_note(found, self.config, state.epoch, bool(self.notes))
            client.set_tag(run_id, NOTE, note)
            for metric, value in found.items():
                client.log_metric(run_id, metric, value, step=state.epoch)
            client.set_tag(run_id, TESTED, tested)
        self.log.queue.close()
        if lost := runs.lost_records([client.get_run(run_id)]):
            print(f"note: {lost}")
        found[name] = last.get(name, math.nan)  # of an epoch's losses, which the trial has
        return Outcome(self.config, run_id, state.epoch, found)

    def register(self, tested: Outcome) -> None:
        """Registers the model, unless an earlier call has, and says where everything is."""
        client, model = connect(self.to.uri), model_name(self.to.sweep)
        runs.restore(client, tested.run_id)
        tags = {SWEEP: self.to.sweep, TRIAL: self.name, DATA: self.fingerprint}
        if version := register(
            client, tested.run_id, self.folder / CHECKPOINT, tested.found, tags, self.dataset
        ):
            print(f"registered as model {model}, version {version} (alias {CHAMPION})")
        print(f"checkpoint: {self.folder / CHECKPOINT}")
        print(f"MLflow run: {tested.run_id} (tag {BEST_OF} = {self.context.trial.info.run_id})")

    def _stopped(self, error: BaseException) -> None:
        try:
            client, run_id = self.log.open()
            interrupted = isinstance(error, KeyboardInterrupt)
            state = EndState.INTERRUPTED if interrupted else EndState.FAILED
            runs.end_run(client, run_id, Ending(state, f"{type(error).__name__}: {error}"))
            self.log.queue.close(timeout=30)
        except Exception as problem:
            print(f"note: MLflow was not told of the end: {problem}")


def _worker(config: dict[str, Any]) -> Exception | None:
    """One of several workers: trains; returns an error that another attempt would end with, too."""
    context: TrainingContext = config["context"]
    torch.set_num_threads(context.threads or 1)
    try:
        training = FullTraining(context, data.load(context.config))
        make_folder(training.folder)  # on this machine
        if distributed.rank() == 0:
            training.log = training.open_log()
        training.train()
        if distributed.rank() == 0:
            training.log.queue.close()
    except (UserError, NonFiniteError) as error:
        return error
    return None
