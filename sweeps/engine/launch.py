"""Starts or resumes a sweep: checks everything before anything is written, then sets it up."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ali import environment
from ali.config import Config
from ali.errors import UserError
from ali.files import existing_part, make_folder
from ali.lock import folder_lock
from ali.output import lossy_output, without_password
from sweeps.engine.cluster import allocate_resources, check_ray, start_ray
from sweeps.engine.driver import Driver, Sweep
from sweeps.engine.gpus import trials_on_a_gpu
from sweeps.engine.live import LOG, say
from sweeps.engine.mirror import JournalMirror
from sweeps.engine.objective import Objective
from sweeps.engine.options import JOURNAL, OPTIONS, Options
from sweeps.engine.points import fitted, within
from sweeps.engine.space import InitialPoint, Space, paper_defaults, read_space, with_optional
from sweeps.engine.storage import Storage
from sweeps.engine.traces import (
    begun_space,
    read_begun,
    refuse_lost_trials,
    refuse_other_data,
    refuse_other_objective,
    refuse_other_options,
)
from sweeps.engine.tracking import runs
from sweeps.engine.tracking.client import (
    MLFLOW_ENVIRONMENT,
    check_database,
    connect,
    experiment_id,
    prepare,
)
from sweeps.engine.tracking.moved import follow_move
from sweeps.engine.tracking.schema import KIND_TRIAL
from sweeps.engine.tracking.search import restore_sweep
from sweeps.engine.unused import refuse_without_effect

if TYPE_CHECKING:
    from mlflow.entities import Run


@lossy_output()
def launch(sweep: Sweep, options: Options) -> int:
    """Runs a sweep to its end, or resumes one; returns the exit code.

    Raises UserError before anything is written if the name is taken, the data, the tracking server
    or the Ray cluster cannot be reached, or the output folder cannot be written.
    """
    options = options.automatic()
    if "?" in options.name and not options.resume:  # earlier versions have started such sweeps
        raise UserError(
            f"--name must not contain ?, where MLflow ends a model's address: {options.name!r}"
        )
    if "runtime_resources" in options.folder.parts:
        raise UserError(
            f"--output-dir {options.output_dir} lies in the copy of --working-dir that Ray deletes "
            "with the job: name a folder that all nodes share, or set ALI_OUTPUT_DIR"
        )
    options.check_storage()
    storage = options.storage
    if not options.resume and ((options.folder / JOURNAL).exists() or storage.has(JOURNAL)):
        raise UserError(
            f"a sweep {options.name!r} exists in {options.storage_path or options.output_dir}: "
            "add --resume to resume it, or choose another --name"
        )
    with contextlib.ExitStack() as held:
        mirror = None
        if options.resume:  # another driver is noticed at once, and not after Ray's start
            refuse_other_options(options)
            mirror = held.enter_context(acquire_sweep(options, storage))
        uri = options.uri
        check_database(uri)
        if not uri.startswith("sqlite:"):
            connect(uri)  # before minutes are spent on data
        base = options.config()
        begun = read_begun(options)
        refuse_lost_trials(begun, options, storage)
        space = begun_space(begun, options, lambda: asked_space(sweep.space, options))
        if not options.resume:
            refuse_without_effect(options, space, sweep.experiment.unused(base))
        base = space.apply_fixed(base)
        largest = space.largest(base)
        say(f"sweep {options.name}: loads {options.data}")
        dataset = sweep.experiment.load_data(largest)  # bad data is found here, not in trials
        for note in sweep.experiment.notes(dataset):
            print(f"note: {note}", flush=True)
        fingerprint = sweep.experiment.fingerprint(dataset)
        refuse_other_data(begun, options, fingerprint)
        if not options.resume:
            sweep.experiment.check_test_data(base)  # here, not in best.py after the sweep
        objective = chosen_objective(sweep, options, base, dataset)
        refuse_other_objective(begun, options, objective)
        points = first_points(sweep, options, space, base)
        check_ray()
        make_folder(existing_part(options.output_dir), shared=True)
        quiet_libraries()
        began = time.monotonic()
        with ThreadPoolExecutor(1) as beside:  # MLflow's part and Ray's start both take seconds
            beside.submit(prepare, uri)
            available = start_ray()
            on_a_gpu = 1
            if options.gpus_per_trial is None and available.get("GPU"):
                on_a_gpu = trials_on_a_gpu(sweep.experiment.gpu_memory(largest, dataset))
            resources = allocate_resources(options, available, on_a_gpu)
        make_folder(options.output_dir, shared=True)
        client = connect(uri)
        known = restore_sweep(client, options.name) if options.resume else None
        experiment = known or experiment_id(client, options.output_dir)
        follow_move(client, experiment, options.output_dir)
        same_name = runs.find_sweep(client, experiment, options.name)
        refuse_other_sweep(options, objective.name, same_name)
        logged = runs.find_runs(client, experiment, sweep=options.name, kind=KIND_TRIAL)
        refuse_lost_trials(begun, options, storage, logged)
        refuse_other_data(begun, options, fingerprint, logged)
        if mirror is None:
            mirror = held.enter_context(acquire_sweep(options, storage))
        driver = Driver(
            replace(sweep, space=space), options, base, dataset, objective, resources, client,
            mirror, began, points,
        )  # fmt: skip
        return driver.run(experiment)


def asked_space(space: Space, options: Options) -> Space:
    """The requested space: a sweep's own, changed by --space and the optional dimensions.

    Raises UserError if the file cannot be read, or does not hold a space.
    """
    if options.space:
        space = read_space(options.space, space)
    optional = options.bn_with_z, options.vary_weight_std, options.vary_batch_size
    return with_optional(space, options.config(), *optional)


def chosen_objective(sweep: Sweep, options: Options, base: Config, dataset: Any) -> Objective:
    """What trials are compared by. Raises UserError if the experiment does not have it."""
    own = sweep.experiment.objective(base, dataset)
    chosen = options.objective or sweep.objective or own
    known = sweep.experiment.metric_names(base, dataset)
    if isinstance(chosen, str):
        chosen = Objective.parse(chosen, options.direction, {own, *(known or ())})
    chosen.check(known)
    return chosen


def first_points(
    sweep: Sweep, options: Options, space: Space, base: Config
) -> list[tuple[InitialPoint, bool]]:
    """The points to try before the search draws any, and whether each is the paper's own."""
    from sweeps.engine.warm_start import warm_points

    own: list[tuple[InitialPoint, bool]] = []
    for make in sweep.points_to_evaluate:
        point, changes = within(make(base), space, base)
        if any(_same(point, other, space, base) for other, _ in own):
            continue  # for this model, both are the same point
        if changes and not options.resume:
            where = ", ".join(f"{k} {now} for {before}" for k, (before, now) in changes.items())
            print(f"note: the space does not have the point {make.__name__}: tried with {where}")
        own.append((point, make is paper_defaults and not changes))
    warm: list[InitialPoint] = []
    with contextlib.suppress(*[UserError] * options.resume):  # the earlier sweep may be deleted
        warm = warm_points(options, space, base, [point for point, _ in own])
    return [*own, *((point, False) for point in warm)][: options.num_trials]


def _same(point: InitialPoint, other: InitialPoint, space: Space, base: Config) -> bool:
    params = [fitted(one.params, space, base) for one in (point, other)]
    return params[0] == params[1] and point.paper_values == other.paper_values


@contextlib.contextmanager
def acquire_sweep(options: Options, storage: Storage) -> Iterator[JournalMirror]:
    """In the block, this is the sweep's only driver. Raises UserError if there is another."""
    folder, what = options.folder, f"sweep {options.name!r}"
    make_folder(folder)
    with (
        folder_lock(folder, what),
        JournalMirror(
            storage, what, folder / JOURNAL, folder / OPTIONS, logs=[folder / LOG],
            outage_seconds=options.outage_seconds,
        ) as mirror,
    ):  # fmt: skip
        yield mirror


def refuse_other_sweep(options: Options, objective: str, known: Run | None) -> None:
    """Raises UserError if the run that MLflow has of this name is not this sweep's."""
    if known and not options.resume:
        raise UserError(
            f"MLflow at {without_password(options.uri)} has a sweep {options.name!r} already: "
            "choose another --name"
        )
    if known and (before := runs.objective_of(known)) != objective:
        raise UserError(
            f"sweep {options.name!r} compares trials by {before}, but on this data by "
            f"{objective}: resume it with the --data-dir and the objective it was started with"
        )


def quiet_libraries() -> None:
    """Stops libraries from printing over the progress, calling home, or changing the folder."""
    import optuna

    from sweeps.engine import ray_compat

    environment.set_defaults(**ray_compat.ENVIRONMENT, **MLFLOW_ENVIRONMENT)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    ray_compat.quiet()
