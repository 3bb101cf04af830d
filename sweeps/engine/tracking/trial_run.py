"""A trial's run in MLflow, written by the process that trains, which does not wait for it."""

from __future__ import annotations

import contextlib
import math
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ali import environment
from ali.metrics import EPOCH
from sweeps.engine.tracking.client import OUTAGE_SECONDS, open_client
from sweeps.engine.tracking.pictures import (
    LOGGED_IMAGES,
    file_key,
    logged_pictures,
    write_pictures,
)
from sweeps.engine.tracking.queue import AsyncLogQueue
from sweeps.engine.tracking.runs import (
    create_trial,
    describe,
    find_trial,
    followed,
    logged_epochs,
    to_text,
)
from sweeps.engine.tracking.schema import (
    KIND_BEST,
    KIND_TRIAL,
    METRICS,
    MISSING,
    PICTURES,
    TEXTS,
    TrackingContext,
    missing_text,
    read_missing,
)
from sweeps.engine.tracking.search import is_gone, restore

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

Records = dict[str, set[int]]  # epochs by kind of record
TITLES = {KIND_TRIAL: "trial", KIND_BEST: "full training"}  # of pictures, by kind of run


class TrialRun:
    """An MLflow run under its sweep's.

    The run is found by its tags, so a process that is restarted continues the run it had. A trial's
    run is created by the driver; others are created here (`create`). An epoch's metrics are one
    request; its pictures follow, and no metrics wait for them. What the run already holds is not
    logged again. Its tag MISSING lists what it lacks. A run that somebody has deleted is restored;
    if it is gone for good, a new one gets what this process has logged, except pictures.
    """

    def __init__(
        self,
        to: TrackingContext,
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
        self._opened = ""  # the run that this process has opened, for when it has been deleted
        self._logged: set[int] | None = None  # epochs; None: not read yet
        self._pictured: set[tuple[str, int]] | None = None  # keys and epochs of pictures
        self._epochs_pictured: set[int] = set()
        self._texts: list[tuple[str, str]] = []  # queued: text, file
        self._rows: dict[int, tuple[dict[str, float], int]] = {}  # metrics and time, by epoch
        self._missing = MissingRecords()
        self._client: MlflowClient | None = None
        self._opening = threading.Lock()  # the queue has two threads
        self.queue = AsyncLogQueue(f"{kind} {trial_id}", outage_seconds, last=self._tell_missing)
        self.queue.put(self.open)

    def epoch(self, metrics: Mapping[str, float], images: Mapping[str, np.ndarray]) -> None:
        """Queues one epoch. `metrics` holds EPOCH; `images` are uint8 (H, W, 3) by key."""
        epoch, metrics, when = int(metrics[EPOCH]), dict(metrics), int(time.time() * 1000)
        self._rows.setdefault(epoch, (metrics, when))
        self._missing.add(METRICS, epoch)
        self.queue.put(lambda: self._log_metrics(epoch, metrics, when))
        if images:
            self.pictures(epoch, images, metrics.get(self._to.objective))

    def pictures(
        self, epoch: int, images: Mapping[str, np.ndarray], value: float | None = None
    ) -> None:
        """Queues pictures of an epoch (0: before the first); `value`: the objective then."""
        title = f"{self._to.sweep} · {TITLES[self._kind]} {self._trial_id} · epoch {epoch}"
        title += f" · {self._to.objective} {value:.4f}" if value is not None else ""
        images, now = dict(images), int(time.time() * 1000)
        self._missing.add(PICTURES, epoch)
        self.queue.put_file(lambda: self._log_pictures(epoch, images, title, now))

    def text(self, text: str, file: str) -> None:
        """Queues a text artifact."""
        number = len(self._texts)
        self._texts.append((text, file))
        self._missing.add(TEXTS, number)
        self.queue.put_file(lambda: self._log_text(text, file, number))

    def tell_missing(self) -> None:
        """Queues the tag MISSING, for a process that may be ended before all is delivered."""
        self.queue.put(self._tell_missing)

    def open(self) -> tuple[MlflowClient, str]:
        """The client and the run's id; the run is found, or created, at the first call."""
        with self._opening:  # the queue's threads and the owner's must not create two runs
            if self._client is None or not self._run_id:
                self._open()
            assert self._client is not None
            return self._client, self._run_id

    def reopen(self) -> tuple[MlflowClient, str]:
        """As `open`, also if somebody has deleted the run since."""
        with self._opening:
            self._run_id = ""
        return self.open()

    def run(self) -> Run:
        """The run as MLflow has it."""
        client, run_id = self.reopen()
        return client.get_run(run_id)

    def _open(self) -> None:
        environment.adopt_tracking_variables(self._to.variables)
        self._client = client = open_client(self._to.uri)
        run = self._find(client)
        if run is None:
            if not self._create:  # if two processes created it, there would be two runs
                raise LookupError("the driver has not opened the run yet")
            run = create_trial(client, self._to, self._trial_id, self._kind)
        first = not self._opened
        if first and self._create and run.info.status != "RUNNING":  # more epochs follow
            client.update_run(run.info.run_id, status="RUNNING")
        # Parameters never change in MLflow: what differs after a restart becomes a tag.
        known = run.data.params
        changed = {f"later.{k}": to_text(v) for k, v in self._params.items() if k in known}
        changed = {k: v for k, v in changed.items() if v != known[k.removeprefix("later.")]}
        new = {k: v for k, v in self._params.items() if k not in known}
        describe(client, run.info.run_id, new, self._tags | changed)
        anew = self._opened not in ("", run.info.run_id)
        self._missing.read(run.data.tags, anew)
        if anew:
            self._log_again(client, run)
        self._run_id = self._opened = run.info.run_id

    def _find(self, client: MlflowClient) -> Run | None:
        """Its run, restored if it was deleted; None: there is none, or it is gone for good."""
        run = find_trial(client, self._to, self._trial_id, self._kind)
        if run is None and self._opened:
            try:
                restore(client, self._opened)
                return client.get_run(self._opened)
            except Exception as error:
                if not is_gone(error):
                    raise
        if run is None:
            self._to = followed(client, self._to)
            run = find_trial(client, self._to, self._trial_id, self._kind)
        return run

    def _log_again(self, client: MlflowClient, run: Run) -> None:
        """Logs to a new run what this process has logged to the deleted one."""
        logged = logged_epochs(client, run) | self._missing.own(METRICS)  # those are queued
        for epoch, (metrics, when) in list(self._rows.items()):
            if epoch not in logged:
                client.log_batch(run.info.run_id, metrics=_batch(metrics, when, epoch))
        queued = self._missing.own(TEXTS)
        for number, (text, file) in enumerate(self._texts):
            if number not in queued:
                client.log_text(run.info.run_id, text, file)
        self._logged = self._pictured = None
        for epoch in self._epochs_pictured:
            self._missing.add(PICTURES, epoch)
        self._epochs_pictured = set()

    @contextlib.contextmanager
    def _attempt(self) -> Iterator[tuple[MlflowClient, str]]:
        """In the block, something is logged; after a failure the run is found again or restored."""
        try:
            yield self.open()
        except Exception:
            self._run_id = ""
            raise

    def _log_text(self, text: str, file: str, number: int) -> None:
        with self._attempt() as (client, run_id):
            client.log_text(run_id, text, file)
        self._missing.delivered(TEXTS, number)

    def _log_metrics(self, epoch: int, metrics: dict[str, float], when: int) -> None:
        from mlflow.entities import RunTag

        with self._attempt() as (client, run_id):
            if self._logged is None:
                run = client.get_run(run_id)
                self._missing.read(run.data.tags)
                self._logged = logged_epochs(client, run)
            # If this raises, the server may have the metrics anyway, or from a process that resumed
            # when this one was considered lost: the next attempt reads the run again.
            logged, self._logged = self._logged, None
            if epoch not in logged:
                missing = self._missing.text(epoch)
                tags = [RunTag(MISSING, missing)] if missing != self._missing.told else []
                client.log_batch(run_id, metrics=_batch(metrics, when, epoch), tags=tags)
                self._missing.told = missing
        self._logged = logged | {epoch}
        self._missing.delivered(METRICS, epoch)

    def _log_pictures(
        self, epoch: int, images: dict[str, np.ndarray], title: str, now: int
    ) -> None:
        from ali.figures.annotated import titled

        with self._attempt() as (client, run_id):
            if self._pictured is None:
                self._pictured = set(logged_pictures(client, run_id))
            self._epochs_pictured |= {at for _, at in self._pictured}
            pictured, self._pictured = self._pictured, None
            seen = {key for key, at in pictured if at == epoch}
            new = {key: titled(x, title) for key, x in images.items() if file_key(key) not in seen}
            if new:
                with tempfile.TemporaryDirectory() as folder:
                    write_pictures(Path(folder), new, epoch, now)
                    client.log_artifacts(run_id, folder)
                if not pictured:
                    client.set_tag(run_id, LOGGED_IMAGES, "true")
        self._pictured = pictured | {(file_key(key), epoch) for key in images}
        self._epochs_pictured.add(epoch)
        self._missing.delivered(PICTURES, epoch)

    def _tell_missing(self) -> None:
        if self._missing.text() == self._missing.told:
            return
        with self._attempt() as (client, run_id):
            self._missing.read(client.get_run(run_id).data.tags)
            if (text := self._missing.text()) != self._missing.told:
                client.set_tag(run_id, MISSING, text)
                self._missing.told = text


class MissingRecords:
    """The records that MLflow lacks of a run, by kind and epoch: the contents of the tag MISSING.

    Several processes write the tag in turn, as a training's driver and its workers do: each adds
    its own records to those that it reads there, and removes only those that it delivers.

    Attributes:
        told: the tag's value when it was last read or written.
    """

    def __init__(self) -> None:
        kinds = METRICS, PICTURES, TEXTS
        self._own: Records = {kind: set() for kind in kinds}  # this process's: queued, or given up
        self._delivered: Records = {kind: set() for kind in kinds}  # by this process
        self._listed: Records = {}  # in the tag as others have left it
        self.told = "{}"
        self._lock = threading.Lock()

    def add(self, kind: str, epoch: int) -> None:
        """Notes a record of this process that is still to be delivered."""
        with self._lock:
            self._own[kind].add(epoch)
            self._delivered[kind].discard(epoch)

    def delivered(self, kind: str, epoch: int) -> None:
        """Notes that MLflow has a record now."""
        with self._lock:
            self._own[kind].discard(epoch)
            self._delivered[kind].add(epoch)

    def own(self, kind: str) -> set[int]:
        """The records of this process that MLflow lacks."""
        with self._lock:
            return set(self._own[kind])

    def read(self, tags: Mapping[str, str], anew: bool = False) -> None:
        """Takes in what others have written to the tag; `anew`: of a run in place of the former."""
        text = tags.get(MISSING, "{}")
        with self._lock:
            if text != self.told:
                before, self._listed = self._listed, read_missing(tags)
                self._listed = _union(self._listed, before) if anew else self._listed
            self.told = text

    def text(self, epoch: float = math.inf) -> str:
        """The tag's value when this process logs an epoch: later records of its own are queued."""
        with self._lock:
            own = {kind: {e for e in epochs if e < epoch} for kind, epochs in self._own.items()}
            listed = {
                k: epochs - self._delivered.get(k, set()) for k, epochs in self._listed.items()
            }
            return missing_text(_union(own, listed))


def _union(one: Records, other: Records) -> Records:
    return {kind: one.get(kind, set()) | other.get(kind, set()) for kind in (*one, *other)}


def _batch(metrics: Mapping[str, float], when: int, epoch: int) -> list[Metric]:
    from mlflow.entities import Metric

    return [Metric(key, value, when, epoch) for key, value in metrics.items()]
