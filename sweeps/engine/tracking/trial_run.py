"""A trial's run in MLflow, written by the process that trains, which does not wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ali import environment
from ali.metrics import EPOCH
from sweeps.engine.tracking.client import OUTAGE_SECONDS, open_client
from sweeps.engine.tracking.queue import AsyncLogQueue
from sweeps.engine.tracking.runs import (
    create_trial,
    describe,
    find_trial,
    logged_epochs,
    restore,
    to_text,
)
from sweeps.engine.tracking.schema import KIND_TRIAL, TrackingContext

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient


class TrialRun:
    """An MLflow run under its sweep's.

    The run is found by its tags, so a process that is restarted continues the run it had. A trial's
    run is created by the driver; others are created here (`create`). An epoch is one request;
    epochs that the run already holds are not logged again.
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
        self._logged: set[int] = set()
        self._client: MlflowClient | None = None
        self._opening = threading.Lock()
        self.queue = AsyncLogQueue(f"{kind} {trial_id}", outage_seconds)
        self.queue.put(self.open)

    def epoch(self, metrics: Mapping[str, float], images: Mapping[str, np.ndarray]) -> None:
        """Queues one epoch. `metrics` holds EPOCH; `images` are uint8 (H, W, 3) by key."""
        self.queue.put(lambda: self._log_epoch(dict(metrics), dict(images)))

    def text(self, text: str, file: str) -> None:
        """Queues a text artifact."""
        self.queue.put(lambda: self._log_text(text, file))

    def open(self) -> tuple[MlflowClient, str]:
        """The client and the run's id; the run is found, or created, at the first call."""
        with self._opening:  # by the queue's thread and by its owner's, which must not create two
            return self._open()

    def _open(self) -> tuple[MlflowClient, str]:
        if self._client is not None and self._run_id:
            return self._client, self._run_id
        environment.adopt_tracking_variables(self._to.variables)
        self._client = client = open_client(self._to.uri)
        run = find_trial(client, self._to, self._trial_id, self._kind)
        if run is None and self._opened:
            restore(client, self._opened)
            run = client.get_run(self._opened)
        if run is None:
            if not self._create:  # if two processes created it, there would be two runs
                raise LookupError("the driver has not opened the run yet")
            run = create_trial(client, self._to, self._trial_id, self._kind)
        if self._create and run.info.status != "RUNNING":  # it ended, and is to have more epochs
            client.update_run(run.info.run_id, status="RUNNING")
        self._logged = logged_epochs(client, run)
        # Parameters never change in MLflow: what differs after a restart becomes a tag.
        known = run.data.params
        changed = {f"later.{k}": to_text(v) for k, v in self._params.items() if k in known}
        changed = {k: v for k, v in changed.items() if v != known[k.removeprefix("later.")]}
        new = {k: v for k, v in self._params.items() if k not in known}
        describe(client, run.info.run_id, new, self._tags | changed)
        self._run_id = self._opened = run.info.run_id
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
        # If this raises, the server may have it all the same, or by now from the process that
        # resumed when this one was taken for lost, or somebody has deleted the run: the next
        # attempt looks at it again.
        self._run_id = ""
        # The metrics come last and in one request: an epoch that has them has all its pictures.
        for key, image in images.items():
            client.log_image(run_id, image, key=key, step=epoch)
        now = int(time.time() * 1000)
        batch = [Metric(key, value, now, epoch) for key, value in metrics.items()]
        client.log_batch(run_id, metrics=batch)
        self._run_id = run_id
        self._logged.add(epoch)
