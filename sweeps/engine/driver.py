"""From a `Sweep` to a Ray Tune run: trials until all have ended, and the report at the end."""

from __future__ import annotations

import atexit
import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from ali.config import Config
from ali.output import first_line
from sweeps.engine.endings import Ending, EndState
from sweeps.engine.experiment import AliExperiment, Experiment
from sweeps.engine.journal import EXPERIMENT, SCRIPT
from sweeps.engine.live import LOG, LiveView
from sweeps.engine.mirror import JournalMirror
from sweeps.engine.objective import Objective
from sweeps.engine.options import JOURNAL, Options
from sweeps.engine.retry import AwayError, Retry, is_temporary
from sweeps.engine.scripts import resume_command, running_script
from sweeps.engine.space import InitialPoint, Space, paper_defaults, searched_fields, suggest
from sweeps.engine.tracking import runs
from sweeps.engine.tracking.client import experiment_id
from sweeps.engine.tracking.schema import (
    DIRECTION,
    DRIVER_SECONDS,
    EXPERIMENT_CLASS,
    FORMULA,
    FRONT_PAGE_SECONDS,
    SLOT_USE,
    TrackingContext,
)
from sweeps.engine.tracking.search import restore_sweep
from sweeps.engine.tracking.view import save_view

if TYPE_CHECKING:
    import optuna
    from mlflow import MlflowClient
    from optuna.samplers import BaseSampler

    from sweeps.engine.cluster import TrialResources
    from sweeps.engine.front_page import FrontPage
    from sweeps.engine.overview import Overview
    from sweeps.engine.progress import Progress
    from sweeps.engine.scheduler import EarlyStopping
    from sweeps.engine.search import StudySearch
    from sweeps.engine.shutdown import GracefulShutdown
    from sweeps.engine.study import Study

TELLING = ("data", "model", "width", "epochs", "train_size")  # options that tell sweeps apart
STOP_SECONDS = 20.0  # for which a stopped sweep waits for MLflow
STOPPED, RAY_ENDED = "the sweep was stopped", "Ray's processes ended"


@dataclass(frozen=True)
class Sweep:
    """What is swept.

    Attributes:
        space: the ranges of the search.
        points_to_evaluate: makes the points that are tried first, from what all trials have in
            common (the data set, and with it the paper's table).
        experiment: what a trial runs.
        objective: what trials are compared by: a metric's name, arithmetic of several, or an
            `Objective`; None: the experiment's own. --objective comes first.
    """

    space: Space = field(default_factory=Space)
    points_to_evaluate: tuple[Callable[[Config], InitialPoint], ...] = (paper_defaults,)
    experiment: Experiment = field(default_factory=AliExperiment)
    objective: Objective | str | None = None


class Driver:
    """One driver process of a sweep, to the report at the end."""

    def __init__(
        self,
        sweep: Sweep,
        options: Options,
        base: Config,
        dataset: Any,
        objective: Objective,
        resources: TrialResources,
        client: MlflowClient,
        mirror: JournalMirror,
        began: float,  # on the monotonic clock, before Ray's start
        points: list[tuple[InitialPoint, bool]],
    ) -> None:
        self.sweep, self.options, self.base = sweep, options, base
        self.dataset, self.objective, self.resources = dataset, objective, resources
        self.client, self.mirror, self.storage = client, mirror, mirror.storage
        self.began, self.points = began, points
        self.fingerprint = sweep.experiment.fingerprint(dataset)
        self.searched = searched_fields(sweep.space, base)
        self.front_page: FrontPage | None = None  # once the sweep's run is open

    def run(self, experiment: str) -> int:
        """Runs to the end (0), an interruption (130), or the end of Ray's processes (1)."""
        with LiveView(self.options.folder / LOG) as self.view:
            self.experiment = experiment
            return self._run()

    def _run(self) -> int:
        from sweeps.engine.shutdown import GracefulShutdown

        again = resume_command(*self.options.arguments())
        tell = partial(self._interrupted, STOPPED)
        with GracefulShutdown(again, tell, self.view.urgent) as shutdown:
            self._wait_for_what_is_away(lambda: shutdown.requested)
            try:
                if self._sweep(shutdown):
                    return 0
            except KeyboardInterrupt:
                pass
            except Exception as error:
                if not shutdown.requested:
                    why = f"its driver ended: {first_line(error)}"
                    self._interrupted(why, STOP_SECONDS)
                    raise
                print(f"note: {first_line(error)}", flush=True)
            code, why = (130, STOPPED) if shutdown.requested else (1, RAY_ENDED)
            self._interrupted(why, STOP_SECONDS)
        print(f"{'stopped' if code == 130 else why}; resume with: {again}")
        if shutdown.ray_is_gone():  # Ray would wait for its processes at exit
            atexit.register(os._exit, code)
        return code

    def _wait_for_what_is_away(self, stopped: Callable[[], bool]) -> None:
        seconds, where = self.options.outage_seconds, self.storage.folder
        self.ask_mlflow = Retry("MLflow", seconds, is_temporary, stopped)
        self.ask_storage = Retry(f"the storage {where}", seconds, stopped=stopped)

    def _sweep(self, shutdown: GracefulShutdown) -> bool:
        """Runs the sweep to its end (True), or until it is interrupted (False)."""
        from sweeps.engine.front_page import FrontPage
        from sweeps.engine.progress import BEST_NAMED
        from sweeps.engine.reconcile import reconcile
        from sweeps.engine.study import Study

        options = self.options
        options.save()
        journal = options.folder / JOURNAL
        with shutdown.postponed():
            study = Study(
                journal, options.name, options.seed, make_sampler=self._sampler,
                maximize=self.objective.maximize,
            )  # fmt: skip
            study.set_data(self.fingerprint)
            study.set_search(self.sweep.space.to_dict(), self.objective.name)
            experiment_class = type(self.sweep.experiment).__name__
            names = {SCRIPT: running_script(), EXPERIMENT: experiment_class}
            study.describe(self.objective.name, **names)
            if not any(trial.state.name != "WAITING" for trial in study.trials()):
                for point, control in self.points:
                    study.enqueue(point, control)
        to = self.ask_mlflow(lambda: self._open(self.experiment))
        self.ask_mlflow(lambda: reconcile(self.client, to, study, BEST_NAMED))
        with contextlib.ExitStack() as within:
            if options.front_page:
                self.front_page = FrontPage(options, study.records, to)
                within.enter_context(self.front_page.kept())
            done, trial_seconds = self._train(study, to, shutdown)
        to = self.ask_mlflow(self._open)
        if self.front_page:
            self.front_page.to = to
        seconds = time.monotonic() - self.began
        use = trial_seconds / (self.resources.concurrent * seconds)
        for name, value in {SLOT_USE: use, DRIVER_SECONDS: seconds}.items():
            self.ask_mlflow(partial(self.client.log_metric, to.parent_run_id, name, value))
        self.ask_mlflow(lambda: reconcile(self.client, to, study, BEST_NAMED))
        if done:
            self._complete(study, to)
        return done

    def _open(self, experiment: str | None = None) -> TrackingContext:
        """Opens the sweep's run, also if somebody has deleted it, or its experiment, meanwhile."""
        client, options = self.client, self.options
        if experiment is None:
            experiment = restore_sweep(client, options.name)
        experiment = experiment or experiment_id(client, options.output_dir, restore=True)
        self.experiment = experiment
        settings = {**options.to_dict(), **self.sweep.space.to_dict()}
        params = {name: settings[name] for name in TELLING if settings[name] is not None}
        name, direction, formula = self.objective.name, self.objective.verb, self.objective.formula
        tags = {DIRECTION: direction, **({FORMULA: formula} if formula else {})}
        if not isinstance(self.sweep.experiment, AliExperiment):
            tags[EXPERIMENT_CLASS] = type(self.sweep.experiment).__name__
        parent = runs.start_sweep(client, experiment, options.name, name, params, tags, settings)
        save_view(
            client, experiment, options.name, name, self.searched, options.epochs,
            ascending=not self.objective.maximize,
        )  # fmt: skip
        return TrackingContext(
            options.uri, experiment, options.name, parent, name, self.searched,
            direction=direction, formula=formula,
        )  # fmt: skip

    def _sampler(self, seed: int) -> BaseSampler:
        """The sampler of one trial."""
        from sweeps.engine.forest import random_points, sampler

        options, plain = self.options, self.base.to_dict()

        def configured(trial: optuna.Trial) -> dict[str, Any]:
            return {**plain, **suggest(trial, self.sweep.space, self.base)}

        candidates = partial(random_points, configured)
        return sampler(options.sampler, seed, options.startup_trials, candidates)

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Draws a trial's point; returns its whole configuration, plain JSON types."""
        point = suggest(trial, self.sweep.space, self.base)
        seed = self.options.seed + trial.number
        return Config.from_dict({**self.base.to_dict(), **point, "seed": seed}).to_dict()

    def _train(
        self, study: Study, to: TrackingContext, shutdown: GracefulShutdown
    ) -> tuple[bool, float]:
        """Runs trials; returns whether all ended without interruption, and their seconds."""
        from sweeps.engine.confirmation import is_new, next_to_confirm
        from sweeps.engine.overview import Overview
        from sweeps.engine.progress import Progress
        from sweeps.engine.scheduler import EarlyStopping
        from sweeps.engine.search import StudySearch

        options = self.options
        grace = options.grace_epochs or self._tenth
        scheduler = EarlyStopping(
            self.objective.name, options.epochs, grace, options.reduction_factor,
            self.objective.maximize,
        )  # fmt: skip
        slots = self.resources.concurrent
        with shutdown.postponed():  # first: it ends trials, and has others tried again
            search = StudySearch(
                study,
                self.suggest,
                scheduler,
                options.num_trials,
                slots,
                options.epochs,
                options.confirm,
                options.confirm_seeds,
                options.race,
                self.ask_storage,
            )
        progress = Progress(options, study, to, self.resources, self.mirror, self._open)
        overview = Overview(options, study, progress, self.objective, slots)
        try:
            with shutdown.ends_tune(), self.view.show(overview.lines):
                self._tune(study, search, scheduler, (progress, overview), to)
        finally:
            progress.close(STOP_SECONDS if shutdown.requested else None)
        trials = study.trials()
        finished = [t for t in trials if t.state.is_finished() and is_new(t)]
        running = any(t.state.name == "RUNNING" for t in trials)
        ended = len(finished) >= options.num_trials and not running
        confirmed = next_to_confirm(trials, options.confirm, options.confirm_seeds) is None
        return ended and confirmed and not shutdown.requested, progress.trial_seconds

    @property
    def _tenth(self) -> int:
        return max(1, self.options.epochs // 10)

    def _tune(
        self,
        study: Study,
        search: StudySearch,
        scheduler: EarlyStopping,
        followers: tuple[Progress, Overview],
        to: TrackingContext,
    ) -> None:
        """Hands the study's trials to Ray Tune, and returns when Tune ends."""
        from ray import tune

        from sweeps.engine import ray_compat
        from sweeps.engine.search import StudyRecorder
        from sweeps.engine.trial import SweepTrial, TrialContext
        from sweeps.engine.watchdog import HangWatchdog

        options, resources = self.options, self.resources
        context = TrialContext(
            self.sweep.experiment,
            to,
            options.image_every or self._tenth,
            resources.threads,
            resources.gpus,
            options.outage_seconds,
            self.fingerprint,
            self.base.to_dict()["data_dir"],
            self.objective,
        )
        trainable = tune.with_resources(
            tune.with_parameters(SweepTrial, context=context),
            {"cpu": resources.cpus, "gpu": resources.gpus},
        )
        tune_config = tune.TuneConfig(
            metric=self.objective.name,
            mode="max" if self.objective.maximize else "min",
            search_alg=search,
            scheduler=scheduler,
            num_samples=options.num_trials,
            reuse_actors=True,
            trial_dirname_creator=_trial_name,
            trial_name_creator=_trial_name,
        )
        run_config = tune.RunConfig(
            name=options.name,
            storage_path=self.storage.root,
            storage_filesystem=self.storage.filesystem if self.storage.remote else None,
            verbose=0,
            callbacks=[
                # first: what is printed is recorded
                StudyRecorder(study, scheduler),
                *followers,
                HangWatchdog(options.hang_seconds),
            ],
            failure_config=tune.FailureConfig(max_failures=options.max_failures),
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=2, checkpoint_frequency=1, checkpoint_at_end=True
            ),
        )
        ray_compat.treat_ray_errors_as_worker_loss()
        ray_compat.disable_per_checkpoint_snapshots()
        tune.Tuner(trainable, tune_config=tune_config, run_config=run_config).fit()

    def _interrupted(self, reason: str, page_seconds: float = 0.0) -> None:
        from sweeps.engine.reconcile import tell_interrupted

        options = self.options
        seconds = min(STOP_SECONDS, options.outage_seconds)
        told = tell_interrupted(self.client, self.experiment, options.name, reason, seconds)
        if told and self.front_page:
            self.front_page.interrupted(page_seconds)

    def _complete(self, study: Study, to: TrackingContext) -> None:
        from sweeps.engine.reporting import as_text, find
        from sweeps.engine.retention import delete_checkpoints
        from sweeps.engine.study import best_trials

        parent, ending = to.parent_run_id, Ending(EndState.COMPLETED, "all trials ended")
        self.ask_mlflow(lambda: runs.end_run(self.client, parent, ending))
        own = self.sweep.experiment
        if own.objective(self.base, self.dataset) in self.objective.metrics:
            for key, value in own.baselines(self.base, self.dataset).items():
                self.ask_mlflow(partial(self.client.log_metric, parent, key, value))
        ended = [t for t in study.trials() if t.state.is_finished()]
        best = best_trials(ended)[: self.options.keep]
        try:
            self.ask_storage(lambda: delete_checkpoints(self.mirror, ended, best))
        except AwayError as error:
            print(f"note: not all old checkpoints are deleted: {error}")
        where = (study.records, self.client, to.experiment)
        found = self.ask_mlflow(lambda: find(self.options, *where))
        if page := self.front_page:
            self.ask_mlflow(lambda: page.finish(found))
            took = page.seconds
            self.ask_mlflow(lambda: self.client.log_metric(parent, FRONT_PAGE_SECONDS, took))
        print(as_text(found))


def _trial_name(trial: Any) -> str:
    return trial.trial_id
