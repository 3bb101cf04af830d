"""Log records on their way to MLflow, in a thread of their own, through outages."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from sweeps.engine.tracking.client import OUTAGE_SECONDS

log = logging.getLogger(__name__)


class AsyncLogQueue:
    """Delivers records to MLflow one after the other, in a background thread.

    A record is a function that talks to the server. One that raises is tried again until the server
    has been down for `outage_seconds`; from then on each record gets one try.
    """

    def __init__(self, who: str, outage_seconds: float = OUTAGE_SECONDS) -> None:
        self.lost = 0  # records given up
        self._who = who
        self._outage_seconds = outage_seconds
        self._down_since: float | None = None
        self._queue: queue.Queue[Callable[[], object] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def put(self, record: Callable[[], object]) -> None:
        """Queues a record."""
        self._queue.put(record)

    def flush(self, timeout: float) -> bool:
        """Waits until all queued records are delivered or given up; False on time-out."""
        reached = threading.Event()
        self.put(reached.set)
        return reached.wait(timeout)

    def finish(self) -> None:
        """Ends the thread after the records that are queued; does not wait for it."""
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
                self._down_since = None
                return
            except Exception as error:
                now = time.monotonic()
                self._down_since = self._down_since or now
                if now + wait > self._down_since + self._outage_seconds:
                    self.lost += 1
                    log.error("%s: a log record for MLflow was lost: %s", self._who, _line(error))
                    return
                log.warning("%s: MLflow does not answer, retrying: %s", self._who, _line(error))
            time.sleep(wait)
            wait = min(wait * 2, 10.0)


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
