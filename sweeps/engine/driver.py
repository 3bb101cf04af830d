"""A `Sweep` value → a Ray Tune run: set-up, resume, progress, and what is cleaned up at the end."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ali.cli import parse_args
from ali.config import Common, Config
from ali.errors import UserError
from ali.files import atomic_write, make_folder
from ali.metrics import EPOCH
from sweeps.engine import tracking
from sweeps.engine.space import Point, Space, paper
from sweeps.engine.storage import Mirror, Storage, storage_address

if TYPE_CHECKING:
    import optuna
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from optuna.trial import FrozenTrial

    from sweeps.engine.search import Study
    from sweeps.engine.trial import Experiment

JOURNAL, OPTIONS, LOCK = "optuna.journal", "sweep.json", "driver.lock"


def output_folder() -> Path:
    """The folder of all sweeps where none is given: $ALI_OUTPUT_DIR, or runs."""
    return Path(os.environ.get("ALI_OUTPUT_DIR", "runs"))


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Options of a sweep."""

    name: str
    """Name of the sweep: its folder under --output-dir, its runs' tag in MLflow."""
    resume: bool = False
    """Go on with the sweep of this name; its other options are remembered."""
    num_trials: int = 50
    """Trials in all (a resume may raise it)."""
    bn_with_z: bool = False
    """Also try batch norm in D(z) and D(x, z), which the paper calls unstable."""
    grace_epochs: int | None = None
    """Epochs before a trial may be stopped; default: a tenth of --epochs."""
    reduction_factor: float = 3.0
    """ASHA's η: about one trial in η goes on past each rung."""
    startup_trials: int = 10
    """Trials drawn at random before the search models what it has seen."""
    image_every: int | None = None
    """Epochs between pictures in MLflow; default: a tenth of --epochs."""
    max_concurrent: int | None = None
    """Trials at a time; default: as many as the resources hold."""
    cpus_per_trial: int | None = None
    """CPU cores (and threads) of a trial; default: its share of the cores."""
    gpus_per_trial: float | None = None
    """GPUs of a trial, fractions too; default: 1 where there are GPUs."""
    max_failures: int = 3
    """Times a trial whose process was lost goes on from its checkpoint."""
    hang_seconds: float = 21600.0
    """Seconds without a result after which a trial's process is killed and counts as lost: more
    than an epoch with its evaluation and checkpoint ever takes."""
    keep: int = 3
    """Best trials whose last checkpoint is kept; those of other finished trials are deleted."""
    tracking_uri: str | None = None
    """MLflow server; default: $MLFLOW_TRACKING_URI, or mlflow.db in --output-dir."""
    outage_seconds: float = tracking.OUTAGE_SECONDS
    """Seconds that a trial keeps what it has logged while the MLflow server is away."""
    output_dir: Path = field(default_factory=output_folder)
    """Folder of all sweeps: the search's journal, checkpoints, Tune's state; default:
    $ALI_OUTPUT_DIR, or runs."""
    storage_path: str | None = field(default_factory=storage_address)
    """Where checkpoints, Tune's state and a copy of the journal go instead: s3://bucket/runs,
    gs://…; default: $ALI_STORAGE_PATH, or --output-dir."""
    seed: int = 0
    """Seed of the search; trial n trains with seed + n."""

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name or not self.name.isprintable():
            raise UserError(f"--name must be a plain file name, not {self.name!r}")
        if "'" in self.name or "`" in self.name:
            raise UserError(f"--name must be free of quotes, not {self.name!r}")
        at_least = {
            "num_trials": 1,
            "max_concurrent": 1,
            "cpus_per_trial": 1,
            "grace_epochs": 1,
            "image_every": 1,
            "startup_trials": 1,
            "max_failures": 0,
            "keep": 1,
            "seed": 0,
            "gpus_per_trial": 0,
            "outage_seconds": 0,
            "hang_seconds": 1,
        }
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                option = "--" + name.replace("_", "-")
                raise UserError(f"{option} must be at least {least}, not {value}")
        if self.tracking_uri and tracking.without_password(self.tracking_uri) != self.tracking_uri:
            raise UserError(
                "--tracking-uri must not hold a password, which would be logged: "
                "set MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        if not self.reduction_factor > 1:
            raise UserError(f"--reduction-factor must be above 1, not {self.reduction_factor}")

    @property
    def folder(self) -> Path:
        return self.output_dir.resolve() / self.name

    def storage(self) -> Storage:
        """Raises UserError for an address that is none."""
        return Storage.at(self.storage_path or self.output_dir, self.name)

    @property
    def uri(self) -> str:
        given = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        return given or tracking.default_uri(self.output_dir)

    def config(self) -> Config:
        """What all trials of the sweep have in common."""
        common = {f.name: getattr(self, f.name) for f in fields(Common)}
        data_dir = self.data_dir
        if data_dir is None and (root := os.environ.get("ALI_DATA_DIR")):
            folder = Path(root) / self.data  # where a cluster keeps its data sets
            data_dir = folder if folder.is_dir() else None
        if data_dir is not None:  # trials, and best.py, run in folders of their own
            common["data_dir"] = data_dir.resolve()
        return Config(**common, seed=self.seed)

    def where(self) -> str:
        """The options by which another command finds this sweep."""
        shown = f"--name {self.name}"
        if self.output_dir != output_folder():
            shown += f" --output-dir {self.output_dir}"
        if self.storage_path and self.storage_path != storage_address():
            shown += f" --storage-path {self.storage_path}"
        if self.tracking_uri:
            shown += f" --tracking-uri {self.tracking_uri}"
        return shown

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}

    def save(self) -> None:
        """Writes them where a resume finds them, all or nothing: UserError where that fails."""
        with atomic_write(self.folder / OPTIONS) as path:
            path.write_text(json.dumps(self.to_dict(), indent=1))

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Options:
        paths = {k: Path(v) for k, v in plain.items() if k in ("data_dir", "output_dir") and v}
        return cls(**{**plain, **paths})


# What a resume may change; all else would make its trials incomparable.
CHANGEABLE = frozenset(
    {"resume", "num_trials", "max_concurrent", "cpus_per_trial", "gpus_per_trial", "data_dir"}
    | {"max_failures", "keep", "tracking_uri", "outage_seconds", "output_dir", "image_every"}
    | {"hang_seconds", "storage_path"}
)


@dataclass(frozen=True)
class Sweep:
    """What is swept: the space, the points tried first, and the experiment (default: ALI).

    `first` makes points for what all trials have in common: the data set, and with it the table.
    """

    space: Space = field(default_factory=Space)
    first: tuple[Callable[[Config], Point], ...] = (paper,)
    experiment: Experiment | None = None


def parse(defaults: Options, argv: list[str] | None = None) -> Options:
    """Options from the command line; a resume starts from those that the sweep was started with.

    Raises UserError where a resume asks for what would make the sweep's trials incomparable.
    """
    options = parse_args(Options, argv, default=defaults)
    if not options.resume:
        return options
    saved_file = options.folder / OPTIONS
    if options.storage_path:  # where it may have gone on, from another machine
        options.storage().fetch(saved_file)
    if not saved_file.exists():
        raise UserError(
            f"there is no sweep {options.name!r} in {options.output_dir} to resume: "
            f"leave --resume out to start it"
        )
    saved = replace(
        Options.from_dict(json.loads(saved_file.read_text())), output_dir=options.output_dir
    )
    options = parse_args(Options, argv, default=saved)
    changed = [
        f.name for f in fields(Options) if getattr(options, f.name) != getattr(saved, f.name)
    ]
    if fixed := [name for name in changed if name not in CHANGEABLE]:
        names = ", ".join("--" + name.replace("_", "-") for name in fixed)
        raise UserError(
            f"a resume cannot change {names}: leave it out, or start a sweep of another --name"
        )
    return options


def launch(sweep: Sweep, options: Options) -> int:
    """Runs a sweep to its end, or goes on with one; returns the exit code.

    Raises UserError before anything is written where the name is taken, the data, the tracking
    server or the Ray cluster cannot be reached, or the output folder cannot be written.
    """
    if "runtime_resources" in options.folder.parts:
        raise UserError(
            f"--output-dir {options.output_dir} lies in the copy of --working-dir that Ray deletes "
            "with the job: name a folder that all nodes share, or set ALI_OUTPUT_DIR"
        )
    storage = options.storage()
    storage.check()
    if not options.resume and ((options.folder / JOURNAL).exists() or storage.has(JOURNAL)):
        raise UserError(
            f"a sweep {options.name!r} exists in {options.storage_path or options.output_dir}: "
            "add --resume to go on with it, or choose another --name"
        )
    with contextlib.ExitStack() as held:
        mirror = None
        if options.resume:  # another driver is told of at once, and not after Ray's start
            mirror = held.enter_context(_holding(options, storage))
        if not options.uri.startswith("sqlite:"):
            tracking.connect(options.uri)  # before minutes are spent on data
        experiment = sweep.experiment or _ali()
        objective = experiment.objective(options.config())  # bad data is found here, not in trials
        refuse_dead_cluster()
        make_folder(options.output_dir)
        _quiet()
        began = time.monotonic()
        with ThreadPoolExecutor(1) as beside:  # a new database and Ray both take seconds to start
            connecting = beside.submit(tracking.connect, options.uri)
            share = allot(options, start_ray())
            client = connecting.result()
        where = tracking.experiment_id(client, options.output_dir)
        _refuse_other_sweep(options, objective, tracking.find_sweep(client, where, options.name))
        if mirror is None:
            mirror = held.enter_context(_holding(options, storage))
        return _Driver(
            sweep, experiment, objective, options, share, client, where, began, mirror
        ).run()


@contextlib.contextmanager
def _holding(options: Options, storage: Storage) -> Iterator[Mirror]:
    """Within, this is the sweep's only driver. Raises UserError where there is another."""
    folder, what = options.folder, f"sweep {options.name!r}"
    make_folder(folder)
    with (
        only_driver(folder, what),
        Mirror(storage, what, folder / JOURNAL, folder / OPTIONS) as mirror,
    ):
        yield mirror


def _refuse_other_sweep(options: Options, objective: str, known: Run | None) -> None:
    """Raises UserError where the run that MLflow has of this name is not this sweep's."""
    if known and not options.resume:
        raise UserError(
            f"MLflow at {options.uri} has a sweep {options.name!r} already: choose another --name"
        )
    if known and (before := tracking.objective_of(known)) != objective:
        raise UserError(
            f"sweep {options.name!r} minimises {before}, but on this data a sweep minimises "
            f"{objective}: resume it with the --data-dir it was started with"
        )


def _ali() -> Experiment:
    from sweeps.engine.trial import ALI

    return ALI


@contextlib.contextmanager
def only_driver(folder: Path, what: str) -> Iterator[None]:
    """Holds a folder's lock, which the kernel drops with the process, however it ends.

    Raises UserError, which names the process, where another one holds it.
    """
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(f"{what} is being run by {holder}: wait for it, or stop it") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


class _Driver:
    """One driver process of a sweep, to the table at the end."""

    def __init__(
        self,
        sweep: Sweep,
        experiment: Experiment,
        objective: str,
        options: Options,
        share: Share,
        client: MlflowClient,
        where: str,
        began: float,  # on the monotonic clock, before Ray's start
        mirror: Mirror,
    ) -> None:
        self.sweep, self.experiment, self.objective = sweep, experiment, objective
        self.options, self.share, self.client, self.where = options, share, client, where
        self.began, self.mirror, self.storage = began, mirror, mirror.storage
        self.base = options.config()
        self.space = replace(sweep.space, bn_with_z=sweep.space.bn_with_z or options.bn_with_z)

    def run(self) -> int:
        again = f"python {sys.argv[0]} {self.options.where()} --resume"
        with _Stop(again) as stop:
            with contextlib.suppress(KeyboardInterrupt):
                if self._sweep(stop):
                    return 0
            self._interrupted()
        print(f"stopped; go on with: {again}")
        return 130

    def _sweep(self, stop: _Stop) -> bool:
        """Runs the sweep to its end (True), or until it is interrupted (False)."""
        from sweeps.engine.search import Study

        options = self.options
        options.save()
        study = Study(options.folder / JOURNAL, options.name, options.seed, options.startup_trials)
        if not any(trial.state.name != "WAITING" for trial in study.trials()):
            for point in self.sweep.first[: options.num_trials]:
                study.enqueue(point(self.base))
        params = {**options.to_dict(), **asdict(self.space)}
        parent = tracking.start_sweep(self.client, self.where, options.name, self.objective, params)
        to = tracking.Destination(options.uri, self.where, options.name, parent, self.objective)
        reconcile(self.client, to, study)
        done = self._tune(study, to, stop)
        reconcile(self.client, to, study)
        if done:
            self._complete(study, to)
        return done

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        from sweeps.engine.space import suggest

        point = suggest(trial, self.space, self.base)
        return Config.from_dict(
            {**self.base.to_dict(), **point, "seed": self.options.seed + trial.number}
        ).to_dict()

    def _tune(self, study: Study, to: tracking.Destination, stop: _Stop) -> bool:
        """Trains until the sweep is complete (True) or interrupted (False)."""
        from ray import tune

        from sweeps.engine.progress import Progress, Watch
        from sweeps.engine.search import Asha, StudySearch, outlive_trials, snapshot_rarely
        from sweeps.engine.trial import AliTrial, Setting

        options, share = self.options, self.share
        tenth = max(1, options.epochs // 10)
        grace = options.grace_epochs or tenth
        asha = Asha(self.objective, options.epochs, grace, options.reduction_factor, study)
        search = StudySearch(
            study, self.suggest, asha, options.num_trials, share.concurrent, options.epochs
        )
        setting = Setting(
            self.experiment, to, options.image_every or tenth, share.threads, options.outage_seconds
        )
        progress = Progress(options, study, to, share, self.mirror)
        trainable = tune.with_resources(
            tune.with_parameters(AliTrial, setting=setting),
            {"cpu": share.cpus, "gpu": share.gpus},
        )
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                metric=self.objective,
                mode="min",
                search_alg=search,
                scheduler=asha,
                num_samples=options.num_trials,
                reuse_actors=True,
                trial_dirname_creator=_dirname,
                trial_name_creator=_dirname,
            ),
            run_config=tune.RunConfig(
                name=options.name,
                storage_path=self.storage.root,
                storage_filesystem=self.storage.filesystem if self.storage.remote else None,
                verbose=0,
                callbacks=[progress, Watch(options.hang_seconds)],
                failure_config=tune.FailureConfig(max_failures=options.max_failures),
                checkpoint_config=tune.CheckpointConfig(
                    num_to_keep=2, checkpoint_frequency=1, checkpoint_at_end=True
                ),
            ),
        )
        outlive_trials()
        snapshot_rarely()
        with stop.ends_tune():
            tuner.fit()
        progress.close()
        seconds = time.monotonic() - self.began
        use = progress.trial_seconds / (share.concurrent * seconds)
        self.client.log_metric(to.parent_run_id, tracking.SLOT_USE, use)
        self.client.log_metric(to.parent_run_id, tracking.DRIVER_SECONDS, seconds)
        finished = [t for t in study.trials() if t.state.is_finished()]
        return len(finished) >= options.num_trials and not stop.asked

    def _interrupted(self) -> None:
        for run in tracking.find_runs(self.client, self.where, sweep=self.options.name):
            if run.info.status == "RUNNING" and run.data.tags[tracking.KIND] != tracking.KIND_BEST:
                tracking.end_run(
                    self.client, run.info.run_id, tracking.INTERRUPTED, "the sweep was stopped"
                )

    def _complete(self, study: Study, to: tracking.Destination) -> None:
        from sweeps.engine.reporting import report

        tracking.end_run(self.client, to.parent_run_id, tracking.COMPLETED, "all trials ended")
        if self.experiment.baselines is not None:
            for key, value in self.experiment.baselines(self.base).items():
                self.client.log_metric(to.parent_run_id, key, value)
        ended = [t for t in study.trials() if t.state.is_finished()]
        prune(self.storage, ended, self.options.keep)
        print(report(self.options, study.records, self.client, to.experiment))


def _dirname(trial: Any) -> str:
    return trial.trial_id


def _quiet() -> None:
    """Settings of libraries that would otherwise talk over the progress, or talk home, or move."""
    for name, value in {
        "RAY_CHDIR_TO_TRIAL_DIR": "0",  # ./data is where the driver was started
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # _Stop hears it
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a diverged trial has no objective to report
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        "TUNE_MAX_PENDING_TRIALS_PG": "1000000",  # StudySearch holds --max-concurrent
        "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }.items():
        os.environ.setdefault(name, value)
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # Progress says it in a line


PRELOADING_CORES = 16  # of a larger machine, a process a core that imports torch is much memory


def _use_started_processes() -> None:
    """Lets trials run in the processes that Ray has started by itself, a core each.

    Tune asks for processes with certain variables in their environment, and Ray starts new ones for
    that. Where this process has started Ray, all of them inherit these variables as it is.
    """
    from ray._private.worker import _global_node
    from ray.tune.execution import class_cache

    if _global_node is not None and _global_node.is_head():
        class_cache.DEFAULT_ENV_VARS.clear()
        class_cache.ENV_VARS_TO_PROPAGATE = set()  # type: ignore[assignment]


def refuse_dead_cluster() -> None:
    """Raises UserError where this machine belonged to a Ray cluster that is gone.

    `ray start` leaves the cluster's address in a file, and ray.init waits minutes for an answer.
    """
    from ray._private.utils import get_ray_address_file, read_ray_address

    if os.environ.get("RAY_ADDRESS") or not (address := read_ray_address()):
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, ValueError):
        file = get_ray_address_file(None)
        raise UserError(
            f"the Ray cluster at {address}, which this machine belongs to by {file}, does not "
            "answer: start it again, or `ray stop` and delete that file to run on this machine"
        ) from None


def start_ray() -> dict[str, float]:
    """Joins the cluster that RAY_ADDRESS names, or the one this node belongs to, or starts Ray.

    Returns `attainable` of it. Raises UserError where no cluster answers.
    """
    import ray

    address = os.environ.get("RAY_ADDRESS")
    if (os.cpu_count() or 1) <= PRELOADING_CORES:  # what trials need, while the driver prepares
        os.environ.setdefault(
            "RAY_preload_python_modules", "sweeps.engine.trial,ali.experiment,mlflow"
        )
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address,
            include_dashboard=None if address else False,
            ignore_reinit_error=True,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except ConnectionError as error:
        raise UserError(
            f"no Ray cluster answers at RAY_ADDRESS={address}: start it or unset the variable"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, terminate)  # Ray takes it for itself
    with contextlib.suppress(AttributeError, ImportError):  # of another Ray: a slower start
        _use_started_processes()
    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    return attainable({**ray.cluster_resources(), NODE_CPU: max(nodes)})


NODE_CPU = "CPUs of the largest node"  # beside Ray's own names of resources


def attainable(now: dict[str, float]) -> dict[str, float]:
    """CPUs and GPUs of the cluster with all the workers that its autoscaler may add to it.

    On a head that `ray up` made, Ray keeps the cluster file at a fixed place; elsewhere, and on
    machines of one's own, what there is `now` is all there will be.
    """
    import yaml

    file = Path("~/ray_bootstrap_config.yaml").expanduser()
    if not file.exists():
        return now
    cluster = yaml.safe_load(file.read_text())
    kinds = {k: v["resources"] for k, v in cluster["available_node_types"].items()}
    kinds.pop(cluster["head_node_type"])
    if not kinds:
        return now
    largest = max(kinds.values(), key=lambda has: (has.get("GPU", 0), has.get("CPU", 0)))
    workers = cluster["max_workers"]
    added = {key: workers * largest.get(key, 0) for key in ("CPU", "GPU")}
    added[NODE_CPU] = largest.get("CPU", 0)
    return {**now, **{key: max(now.get(key, 0), count) for key, count in added.items()}}


@dataclass(frozen=True)
class Share:
    """What one trial gets, and how many there are at a time."""

    cpus: int
    gpus: float
    threads: int
    concurrent: int


def allot(options: Options, resources: dict[str, float]) -> Share:
    """Divides a cluster's CPUs and GPUs among trials.

    Raises UserError where a trial's share is more than there is.
    """
    cpus, gpus = int(resources.get("CPU", 1)), resources.get("GPU", 0.0)
    gpu_share = options.gpus_per_trial
    if gpu_share is None:
        gpu_share = 1.0 if gpus else 0.0
    node = int(resources.get(NODE_CPU, cpus))  # a trial runs on one node
    if gpu_share > gpus or (options.cpus_per_trial or 1) > node:
        raise UserError(
            f"a trial asks for {options.cpus_per_trial or 1} CPUs and {gpu_share:g} GPUs, but "
            f"there are {node} on a node and {gpus:g}: lower --cpus-per-trial or --gpus-per-trial"
        )
    by_gpu = int(gpus / gpu_share) if gpu_share else cpus
    concurrent = min(options.max_concurrent or cpus, options.num_trials, by_gpu)
    share = options.cpus_per_trial or min(node, max(1, cpus // concurrent))
    return Share(share, gpu_share, threads=share, concurrent=max(1, min(concurrent, cpus // share)))


class _Stop:
    """Ctrl-C or SIGTERM: the first ends the sweep in order, a second one the process at once.

    The first is a KeyboardInterrupt, but where Tune trains the end of its loop. `again` is the
    command that goes on with the sweep.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self, again: str) -> None:
        self.asked = False
        self._again, self._tuning = again, False

    def __enter__(self) -> _Stop:
        self._before = {number: signal.getsignal(number) for number in self._SIGNALS}
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._hear)

    @contextlib.contextmanager
    def ends_tune(self) -> Iterator[None]:
        """Within, Tune may be told: by SIGUSR1, from when on it has a handler for it."""
        self._tuning = True
        try:
            yield
        finally:
            self._tuning = False

    def _hear(self, number: int, frame: Any) -> None:
        # os.write: the signal may have come in the middle of a print
        if self.asked:
            os.write(1, f"stopped at once; go on with: {self._again}\n".encode())
            os._exit(130)  # the kernel ends what Ray has started here, as after a kill -9
        self.asked = True
        os.write(1, b"stopping; once more (Ctrl-C) stops at once\n")
        if self._tuning and signal.getsignal(signal.SIGUSR1) != self._before[signal.SIGUSR1]:
            signal.raise_signal(signal.SIGUSR1)
        else:
            raise KeyboardInterrupt


def reconcile(client: MlflowClient, to: tracking.Destination, study: Study) -> None:
    """Gives each finished trial the end state and the values in MLflow that the study has for it.

    Between the two writes a driver can be killed, and a server can be away.
    """
    from sweeps.engine.search import trial_id

    runs: dict[str, Any] = {}
    for run in tracking.find_runs(client, to.experiment, sweep=to.sweep, kind=tracking.KIND_TRIAL):
        runs[run.data.tags[tracking.TRIAL]] = run
    for trial in study.trials():
        end, name = trial.user_attrs.get(tracking.END), trial_id(trial.number)
        if end is None or not trial.state.is_finished():
            continue
        told, values = runs.get(name), trial.intermediate_values
        if (
            told is None
            or told.info.status != tracking.STATUS[end]
            or told.data.metrics.get(EPOCH, 0) < max(values, default=0)
        ):
            reason = trial.user_attrs.get(tracking.REASON, "")
            config = trial.user_attrs.get(tracking.CONFIG)
            tracking.end_trial(client, to, name, end, reason, values, config)


def prune(storage: Storage, trials: list[FrozenTrial], keep: int) -> list[FrozenTrial]:
    """Deletes the checkpoints of ended trials, but for the last one of the `keep` best.

    Returns those trials: the only ones to look at again when another trial has ended.
    """
    from optuna.trial import TrialState

    from sweeps.engine.search import trial_id

    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    best = sorted(complete, key=lambda t: (t.value, t.number))[:keep]
    for trial in trials:
        found = storage.checkpoints(trial_id(trial.number))
        for checkpoint in found[:-1] if trial in best else found:
            storage.delete(checkpoint)
    return best
