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
        self.missing: dict[str, set[int]] = {METRICS: set(), PICTURES: set(), TEXTS: set()}
        self._told = "{}"  # last tag MISSING
        self._client: MlflowClient | None = None
        self._opening, self._noting = threading.Lock(), threading.Lock()  # the queue has 2 threads
        self.queue = AsyncLogQueue(f"{kind} {trial_id}", outage_seconds, last=self._tell_missing)
        self.queue.put(self.open)

    def epoch(self, metrics: Mapping[str, float], images: Mapping[str, np.ndarray]) -> None:
        """Queues one epoch. `metrics` holds EPOCH; `images` are uint8 (H, W, 3) by key."""
        epoch, metrics, when = int(metrics[EPOCH]), dict(metrics), int(time.time() * 1000)
        self._rows.setdefault(epoch, (metrics, when))
        self._note(METRICS, epoch)
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
        self._note(PICTURES, epoch)
        self.queue.put_file(lambda: self._log_pictures(epoch, images, title, now))

    def text(self, text: str, file: str) -> None:
        """Queues a text artifact."""
        number = len(self._texts)
        self._texts.append((text, file))
        self._note(TEXTS, number)
        self.queue.put_file(lambda: self._log_text(text, file, number))

    def tell_missing(self) -> None:
        """Queues the tag MISSING, for a process that may be ended before all is delivered."""
        self.queue.put(self._tell_missing)

    def _note(self, kind: str, epoch: int) -> None:
        with self._noting:
            self.missing[kind].add(epoch)

    def _delivered(self, kind: str, epoch: int) -> None:
        with self._noting:
            self.missing[kind].discard(epoch)

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
        with self._noting:
            for kind, epochs in read_missing(run.data.tags).items() if first else ():
                self.missing.setdefault(kind, set()).update(epochs)
        self._told = run.data.tags.get(MISSING, "{}")
        if self._opened not in ("", run.info.run_id):
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
        logged = logged_epochs(client, run)
        for epoch, (metrics, when) in list(self._rows.items()):
            if epoch not in logged and epoch not in self.missing[METRICS]:  # those are queued
                client.log_batch(run.info.run_id, metrics=_batch(metrics, when, epoch))
        for number, (text, file) in enumerate(self._texts):
            if number not in self.missing[TEXTS]:
                client.log_text(run.info.run_id, text, file)
        self._logged = self._pictured = None
        for epoch in self._epochs_pictured:
            self._note(PICTURES, epoch)
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
        self._delivered(TEXTS, number)

    def _log_metrics(self, epoch: int, metrics: dict[str, float], when: int) -> None:
        from mlflow.entities import RunTag

        with self._attempt() as (client, run_id):
            if self._logged is None:
                self._logged = logged_epochs(client, client.get_run(run_id))
            # If this raises, the server may have the metrics anyway, or from a process that resumed
            # when this one was considered lost: the next attempt reads the run again.
            logged, self._logged = self._logged, None
            if epoch not in logged:
                missing = self._missing_before(epoch)
                tags = [RunTag(MISSING, missing)] if missing != self._told else []
                client.log_batch(run_id, metrics=_batch(metrics, when, epoch), tags=tags)
                self._told = missing
        self._logged = logged | {epoch}
        self._delivered(METRICS, epoch)

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
        self._delivered(PICTURES, epoch)

    def _missing_before(self, epoch: float) -> str:
        with self._noting:
            return missing_text(
                {kind: {e for e in epochs if e < epoch} for kind, epochs in self.missing.items()}
            )

    def _tell_missing(self) -> None:
        text = self._missing_before(math.inf)
        if text != self._told:
            with self._attempt() as (client, run_id):
                client.set_tag(run_id, MISSING, text)
            self._told = text


def _batch(metrics: Mapping[str, float], when: int, epoch: int) -> list[Metric]:
    from mlflow.entities import Metric

    return [Metric(key, value, when, epoch) for key, value in metrics.items()]
