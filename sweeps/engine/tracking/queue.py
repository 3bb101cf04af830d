"""Sends log records to MLflow in background threads, through outages."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from ali.output import first_line
from sweeps.engine.retry import Retry
from sweeps.engine.tracking.client import OUTAGE_SECONDS

log = logging.getLogger(__name__)
Record = Callable[[], object]


class AsyncLogQueue:
    """Delivers records to MLflow one after the other, in a background thread.

    A record is a function that talks to the server. One that raises is tried again until the server
    has been down for `outage_seconds`; from then on each record gets one try. Files have a second
    thread, since they may have a store of their own, whose outage keeps no metrics waiting.

    Args:
        last: a record that is delivered after all others.
    """

    def __init__(
        self, who: str, outage_seconds: float = OUTAGE_SECONDS, last: Record | None = None
    ) -> None:
        self._last = last
        self._records = _Lane(who, outage_seconds)
        self._files = _Lane(who, outage_seconds, then=self._finish_records)

    @property
    def lost(self) -> int:
        """Records given up."""
        return self._records.lost + self._files.lost

    def put(self, record: Record) -> None:
        """Queues a record."""
        self._records.queue.put(record)

    def put_file(self, record: Record) -> None:
        """Queues a record that sends files."""
        self._files.queue.put(record)

    def flush(self, timeout: float) -> bool:
        """Waits until all queued records but files are delivered or given up; False on time-out."""
        return _wait(self.put, timeout)

    def flush_files(self, timeout: float) -> bool:
        """The same of files."""
        return _wait(self.put_file, timeout)

    def finish(self) -> None:
        """Ends the threads after the records that are queued; does not wait for it."""
        self._files.queue.put(None)

    @property
    def ended(self) -> bool:
        """Whether nothing is left to deliver, after `finish`."""
        return not self._files.is_alive() and not self._records.is_alive()

    def _finish_records(self) -> None:
        if self._last:
            self.put(self._last)
        self._records.queue.put(None)

    def close(self, timeout: float | None = None) -> None:
        """Waits until every record has been delivered or given up."""
        self.finish()
        self._files.join(timeout)
        self._records.join(timeout)


def _wait(put: Callable[[Record], None], timeout: float) -> bool:
    reached = threading.Event()
    put(reached.set)
    return reached.wait(min(timeout, threading.TIMEOUT_MAX))


class _Lane(threading.Thread):
    """Delivers records in their order."""

    def __init__(
        self, who: str, outage_seconds: float, then: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(name="mlflow", daemon=True)
        self.queue: queue.Queue[Record | None] = queue.Queue()
        self.lost = 0  # records given up
        self._retry, self._then = Retry(f"{who}: MLflow", outage_seconds), then
        self.start()

    def run(self) -> None:
        while (record := self.queue.get()) is not None:
            self._deliver(record)
        self._then()

    def _deliver(self, record: Record) -> None:
        try:
            self._retry(record)
        except Exception as error:
            self.lost += 1
            log.error("a log record was lost: %s", first_line(error))
