"""Everything said to MLflow: one parent run a sweep, one child run a trial, found by their tags."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.request import urlopen

from ali.errors import UserError
from ali.metrics import EPOCH, VAL_ERROR

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)

EXPERIMENT = "ali"
# Tags
CONFIG = "config"  # the whole experiment as JSON: what a run is repeated from
SWEEP, TRIAL, KIND = "sweep", "trial_id", "kind"
OBJECTIVE = "objective"  # the metric that the sweep minimises; val_error where the tag is absent
END, REASON = "end_state", "end_reason"
HISTORY = "history"  # in a restored trial's first result: (epoch, objective) of those before it
PARENT, RUN_NAME = "mlflow.parentRunId", "mlflow.runName"
# Metrics of the sweep's own run: val_error's protocol without training
RAW_PIXEL_ERROR, UNTRAINED_ERROR = "raw_pixel_error", "untrained_error"
UNTRAINED_BN_ERROR = "untrained_bn_error"  # once batch norm has the statistics of the data
# and what share of its slots' time trials had, of the driver that ended it
SLOT_USE, DRIVER_SECONDS = "slot_use", "driver_seconds"
# Values of KIND
KIND_SWEEP, KIND_TRIAL, KIND_BEST = "sweep", "trial", "best"
# Values of END, and the MLflow status that goes with each
COMPLETED, STOPPED, DIVERGED, FAILED = "completed", "stopped early", "diverged", "failed"
OUT_OF_MEMORY, INTERRUPTED = "out of memory", "interrupted"
STATUS = {
    COMPLETED: "FINISHED",
    STOPPED: "KILLED",
    INTERRUPTED: "KILLED",
    DIVERGED: "FAILED",
    OUT_OF_MEMORY: "FAILED",
    FAILED: "FAILED",
}
OUTAGE_SECONDS = 600.0  # how long a trial keeps trying to deliver what it has logged


def without_password(uri: str) -> str:
    """An address as it may be shown."""
    return re.sub(r"://[^/@]*:[^/@]*@", "://…@", uri)


def default_uri(output_dir: Path) -> str:
    """The sqlite database of a sweep that was given no tracking server."""
    return f"sqlite:///{output_dir.resolve() / 'mlflow.db'}"


def connect(uri: str) -> MlflowClient:
    """A client whose server answers. Raises UserError where it does not, within seconds."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    if uri.startswith(("http://", "https://")):
        try:
            with urlopen(uri.rstrip("/") + "/health", timeout=10):
                pass
        except (URLError, OSError, ValueError) as error:
            raise UserError(
                f"no MLflow server answers at {uri} ({getattr(error, 'reason', error)}): start it, "
                "correct --tracking-uri, or leave it out to log to a local database"
            ) from None
    _quiet()
    from mlflow import MlflowClient

    try:
        with _alone(uri):
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            client.search_experiments(max_results=1)
    except Exception as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(f"cannot use the tracking store {uri}: {first_line}") from None
    return client


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Holds a lock beside a sqlite database: of two that make its tables at once, MLflow's one
    fails."""
    file = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or not os.access(file.parent, os.W_OK):
        yield
        return
    with file.with_name(file.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _quiet() -> None:
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # the Courier says it in a line


def experiment_id(client: MlflowClient, output_dir: Path) -> str:
    """The experiment of all sweeps; artifacts of a local database go to `output_dir`/artifacts."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            raise UserError(
                f"the MLflow experiment {EXPERIMENT!r} was deleted: restore it "
                f"(mlflow experiments restore --experiment-id {found.experiment_id})"
            )
        return found.experiment_id
    local = client.tracking_uri.startswith("sqlite:")
    location = (output_dir.resolve() / "artifacts").as_uri() if local else None
    from mlflow.exceptions import MlflowException

    try:
        return client.create_experiment(EXPERIMENT, artifact_location=location)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return experiment_id(client, output_dir)  # another sweep has made it just now


def find_runs(client: MlflowClient, experiment: str, **tags: str) -> list[Run]:
    """All runs that carry these tags."""
    where = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment], where, max_results=1000, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def find_sweep(client: MlflowClient, experiment: str, sweep: str) -> Run | None:
    """The parent run of a sweep, or None."""
    found = find_runs(client, experiment, **{SWEEP: sweep, KIND: KIND_SWEEP})
    return found[0] if found else None


def objective_of(run: Run) -> str:
    """The metric that a run's sweep minimises."""
    return run.data.tags.get(OBJECTIVE, VAL_ERROR)


def rank(run: Run) -> tuple[float, str]:
    """The key that sorts trials best first; of equals, which counts of modes often are, the first.

    That is also the order in which checkpoints are kept.
    """
    value = run.data.metrics.get(objective_of(run), math.inf)
    return value, run.data.tags[TRIAL]


def start_sweep(
    client: MlflowClient, experiment: str, sweep: str, objective: str, params: Mapping[str, Any]
) -> str:
    """Opens the parent run of a sweep, or opens it again; returns its run id."""
    run = find_sweep(client, experiment, sweep)
    if run is None:
        tags = {SWEEP: sweep, KIND: KIND_SWEEP, RUN_NAME: sweep, OBJECTIVE: objective}
        run = client.create_run(experiment, tags=tags)
        describe(client, run.info.run_id, params)
    else:
        client.update_run(run.info.run_id, status="RUNNING")
    return run.info.run_id


def describe(
    client: MlflowClient,
    run_id: str,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Writes parameters and tags of a run in one request."""
    from mlflow.entities import Param, RunTag

    client.log_batch(
        run_id,
        params=[Param(key, _text(value)) for key, value in (params or {}).items()],
        tags=[RunTag(key, value) for key, value in (tags or {}).items()],
    )


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(_text(v) for v in value)
    return str(value)


def end_run(client: MlflowClient, run_id: str, end: str, reason: str) -> None:
    """Writes how a run ended, and why."""
    describe(client, run_id, tags={END: end, REASON: reason[:500]})
    client.set_terminated(run_id, STATUS[end])


@dataclass(frozen=True)
class Destination:
    """Where a trial logs to: travels from the driver to every trial."""

    uri: str
    experiment: str
    sweep: str
    parent_run_id: str
    objective: str


class Courier:
    """Delivers records to MLflow one after the other, in a thread of its own, through outages.

    A record is a function that talks to the server; one that raises is tried again until the server
    has been away for `outage_seconds`, from when on each record gets one try.
    """

    def __init__(self, who: str, outage_seconds: float = OUTAGE_SECONDS) -> None:
        self.lost = 0  # records given up
        self._who = who
        self._outage_seconds = outage_seconds
        self._away_since: float | None = None
        self._queue: queue.Queue[Callable[[], object] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def put(self, record: Callable[[], object]) -> None:
        self._queue.put(record)

    def flush(self, timeout: float) -> bool:
        """Waits until what was put has been delivered or given up; False at the time-out."""
        reached = threading.Event()
        self.put(reached.set)
        return reached.wait(timeout)

    def finish(self) -> None:
        """No record comes after those that were put; does not wait for them."""
        self._queue.put(None)

    def close(self, timeout: float | None = None) -> None:
        """Waits until every record has been delivered or given up."""
        self.finish()
        self._thread.join(timeout)

    def _work(self) -> None:
        while (record := self._queue.get()) is not None:
            self._deliver(record)

    def _deliver(self, record: Callable[[], object]) -> None:
        wait = 0.5
        while True:
            try:
                record()
                self._away_since = None
                return
            except Exception as error:
                now = time.monotonic()
                self._away_since = self._away_since or now
                if now + wait > self._away_since + self._outage_seconds:
                    self.lost += 1
                    log.error("%s: MLflow did not take a record: %s", self._who, _brief(error))
                    return
                log.warning("%s: MLflow is away, trying again: %s", self._who, _brief(error))
            time.sleep(wait)
            wait = min(wait * 2, 10.0)


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


class TrialRun:
    """An MLflow run under its sweep's, written from the process that trains, which does not wait.

    The run is found by its tags, so a process that starts a second time goes on in the run it had.
    A trial's run is made by the driver; others are made here (`create`). An epoch is one request;
    epochs that the run already holds are not logged again.
    """

    def __init__(
        self,
        to: Destination,
        trial_id: str,
        params: Mapping[str, Any],
        outage_seconds: float = OUTAGE_SECONDS,
        kind: str = KIND_TRIAL,
        tags: Mapping[str, str] | None = None,
        create: bool = False,
    ) -> None:
        self._to, self._trial_id, self._kind, self._create = to, trial_id, kind, create
        self._params, self._tags = dict(params), dict(tags or {})
        self._run_id = ""
        self._logged: set[int] = set()
        self._client: MlflowClient | None = None
        self.courier = Courier(f"{kind} {trial_id}", outage_seconds)
        self.courier.put(self.open)

    def epoch(self, metrics: Mapping[str, float], images: Mapping[str, np.ndarray]) -> None:
        """Queues one epoch. `metrics` holds EPOCH; `images` are uint8 (H, W, 3) by key."""
        self.courier.put(lambda: self._log_epoch(dict(metrics), dict(images)))

    def text(self, text: str, file: str) -> None:
        """Queues a text artifact."""
        self.courier.put(lambda: self._log_text(text, file))

    def open(self) -> tuple[MlflowClient, str]:
        """The client and the run's id; the run is found, or made, at the first call."""
        if self._client is not None and self._run_id:
            return self._client, self._run_id
        _quiet()
        from mlflow import MlflowClient

        self._client = client = MlflowClient(tracking_uri=self._to.uri, registry_uri=self._to.uri)
        run = find_trial(client, self._to, self._trial_id, self._kind)
        if run is None:
            if not self._create:  # two creators would make two runs
                raise LookupError("the driver has not opened the run yet")
            run = create_trial(client, self._to, self._trial_id, self._kind)
        self._logged = logged_epochs(client, run)
        # Parameters never change in MLflow: what a later start does otherwise becomes a tag.
        known = run.data.params
        changed = {f"later.{k}": _text(v) for k, v in self._params.items() if k in known}
        changed = {k: v for k, v in changed.items() if v != known[k.removeprefix("later.")]}
        new = {k: v for k, v in self._params.items() if k not in known}
        describe(client, run.info.run_id, new, self._tags | changed)
        self._run_id = run.info.run_id
        return client, self._run_id

    def _log_text(self, text: str, file: str) -> None:
        client, run_id = self.open()
        client.log_text(run_id, text, file)

    def _log_epoch(self, metrics: dict[str, float], images: dict[str, np.ndarray]) -> None:
        from mlflow.entities import Metric

        client, run_id = self.open()
        epoch = int(metrics[EPOCH])
        if epoch in self._logged:
            return
        # The metrics go last and in one request: an epoch they name has all its pictures.
        for key, image in images.items():
            client.log_image(run_id, image, key=key, step=epoch)
        now = int(time.time() * 1000)
        batch = [Metric(key, value, now, epoch) for key, value in metrics.items()]
        # Should it raise, the server may have it all the same, or have it by now from the process
        # that goes on where this one was taken for lost: the next try looks.
        self._run_id = ""
        client.log_batch(run_id, metrics=batch)
        self._run_id = run_id
        self._logged.add(epoch)


def find_trial(
    client: MlflowClient, to: Destination, trial_id: str, kind: str = KIND_TRIAL
) -> Run | None:
    """The run of a trial, or of its full training (`kind`), or None."""
    found = find_runs(client, to.experiment, **{SWEEP: to.sweep, TRIAL: trial_id, KIND: kind})
    return found[0] if found else None


def create_trial(
    client: MlflowClient,
    to: Destination,
    trial_id: str,
    kind: str = KIND_TRIAL,
    config: Mapping[str, Any] | None = None,
) -> Run:
    """Opens the run of a trial, or of its full training, under its sweep's."""
    tags = {SWEEP: to.sweep, TRIAL: trial_id, KIND: kind, PARENT: to.parent_run_id}
    if config:
        tags[CONFIG] = json.dumps(config)
    tags[OBJECTIVE] = to.objective
    tags[RUN_NAME] = f"{to.sweep}-{trial_id}" + ("" if kind == KIND_TRIAL else f"-{kind}")
    return client.create_run(to.experiment, tags=tags)


def logged_epochs(client: MlflowClient, run: Run) -> set[int]:
    """The epochs that a run holds."""
    if EPOCH not in run.data.metrics:
        return set()
    return {metric.step for metric in client.get_metric_history(run.info.run_id, EPOCH)}


def _own_run(
    client: MlflowClient, to: Destination, trial_id: str, config: Mapping[str, Any] | None
) -> Run:
    """A trial's run, made where there is none."""
    found = find_trial(client, to, trial_id)
    return found or create_trial(client, to, trial_id, config=config)


def open_trial(
    client: MlflowClient, to: Destination, trial_id: str, config: Mapping[str, Any] | None = None
) -> None:
    """Makes a trial's run, or marks the one there is as running. Called by the driver alone."""
    run = _own_run(client, to, trial_id, config)
    if run.info.status != "RUNNING":
        client.update_run(run.info.run_id, status="RUNNING")


def end_trial(
    client: MlflowClient,
    to: Destination,
    trial_id: str,
    end: str,
    reason: str,
    values: Mapping[int, float] | None = None,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Writes how a trial ended into its run. Called by the driver alone.

    Of `values`, the objective by epoch, and of `config` what the run does not hold is written too:
    it was lost with the process that was to log it.
    """
    from mlflow.entities import Metric

    run = _own_run(client, to, trial_id, config)
    if lacking := {k: v for k, v in (config or {}).items() if k not in run.data.params}:
        describe(client, run.info.run_id, lacking)
    logged, now = logged_epochs(client, run), int(time.time() * 1000)
    missing = [(epoch, value) for epoch, value in (values or {}).items() if epoch not in logged]
    if missing:
        pairs = [(to.objective, value, epoch) for epoch, value in missing]
        pairs += [(EPOCH, epoch, epoch) for epoch, _ in missing]
        metrics = [Metric(key, value, now, epoch) for key, value, epoch in pairs]
        client.log_batch(run.info.run_id, metrics=metrics)
    if run.info.status != STATUS[end] or run.data.tags.get(END) != end:
        end_run(client, run.info.run_id, end, reason)


def best_trial(client: MlflowClient, experiment: str, sweep: str) -> Run:
    """The trial with the lowest last objective among those that had the sweep's full budget.

    Raises UserError where no trial completed, naming what there is.
    """
    runs = find_runs(client, experiment, **{SWEEP: sweep, KIND: KIND_TRIAL, END: COMPLETED})
    runs = [run for run in runs if objective_of(run) in run.data.metrics]
    if runs:
        return min(runs, key=rank)
    if find_sweep(client, experiment, sweep) is None:
        names = {r.data.tags.get(SWEEP, "") for r in find_runs(client, experiment, kind=KIND_SWEEP)}
        known = ", ".join(sorted(names)) or "none"
        raise UserError(f"MLflow knows no sweep {sweep!r}: known are {known}")
    raise UserError(
        f"no trial of sweep {sweep!r} has completed its full budget yet: let it go on (--resume)"
    )
