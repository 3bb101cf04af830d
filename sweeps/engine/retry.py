"""Retries: an unavailable bucket or server usually comes back."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ali.errors import UserError
from ali.output import first_line

T = TypeVar("T")
log = logging.getLogger(__name__)

LONGEST_WAIT = 10.0  # seconds between two tries
READER_SECONDS = 20.0  # for which a read-only command waits
SILENT_SECONDS = 15.0  # without an answer before a line says so
# Libraries of MLflow's bucket clients, whose network errors are no OSError.
CLIENTS = ("azure", "boto3", "botocore", "google", "requests", "urllib3")


class AwayError(UserError):
    """A bucket or server was unavailable for longer than a sweep waits (--outage-seconds)."""


@contextlib.contextmanager
def awaited(what: str) -> Iterator[None]:
    """In the block, logs a line if the answer takes long: it may never come."""
    line = "still waiting for %s, which has not answered for %.0f s"
    timer = threading.Timer(SILENT_SECONDS, log.warning, (line, what, SILENT_SECONDS))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Retry:
    """Retries calls while their server or bucket is unavailable, for `seconds` in a row.

    After that, each call gets one try, until one succeeds.

    Args:
        what: the server or bucket, for messages.
        temporary: whether another try may help after this error; others are raised as they are.
        stopped: polled while it waits; once true, it waits no longer.
        way_on: the AwayError's advice to the user.
    """

    def __init__(
        self,
        what: str,
        seconds: float,
        temporary: Callable[[Exception], bool] = lambda error: True,
        stopped: Callable[[], bool] = lambda: False,
        way_on: str = "resume the sweep once it is back",
    ) -> None:
        self._what, self._seconds, self._way_on = what, seconds, way_on
        self._temporary, self._stopped = temporary, stopped
        self._down_since: float | None = None

    def __call__(self, action: Callable[[], T]) -> T:
        """What `action` returns. Raises AwayError once its errors have lasted for too long."""
        wait = 0.5
        while True:
            try:
                with awaited(self._what):
                    result = action()
                self._down_since = None
                return result
            except Exception as error:
                if not self._temporary(error):
                    raise
                now = time.monotonic()
                self._down_since = self._down_since or now
                left = self._down_since + self._seconds - now
                if wait > left or self._stopped():
                    raise AwayError(
                        f"{self._what} has been away for {now - self._down_since:.0f} s "
                        f"({reason(error)}): {self._way_on}"
                    ) from error
                log.warning("%s is away, trying again: %s", self._what, reason(error))
            self._pause(wait)
            wait = min(wait * 2, LONGEST_WAIT)

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._stopped():
            time.sleep(min(left, 0.2))


def reason(error: Exception) -> str:
    """Why something failed: the innermost of the errors that MLflow's client wraps, as
    "[Errno 111] Connection refused"."""
    inner: Any = error.__context__
    if not type(inner).__module__.startswith("requests"):
        return first_line(error)
    inner = getattr(inner.args[0], "reason", inner) if inner.args else inner
    inner = getattr(inner, "original_error", inner)  # refused by a proxy
    return first_line(inner).rpartition(">: ")[2].rpartition("): ")[2]


def ask_mlflow(action: Callable[[], T]) -> T:
    """Calls `action` with short retries, for read-only commands: a user waits."""
    again = "run the same command again once it is back"
    return Retry("MLflow", READER_SECONDS, is_temporary, way_on=again)(action)


def is_temporary(error: Exception) -> bool:
    """Whether an error of MLflow's may pass: no answer, a busy server, a locked database."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        code = error.get_http_status_code()
    else:
        code = getattr(getattr(error, "response", None), "status_code", None)
    if code is not None:
        return code >= 500 or code == 429
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in CLIENTS
