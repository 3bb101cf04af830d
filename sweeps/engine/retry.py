"""Trying again: a bucket or a server that is away comes back, mostly."""

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
READER_SECONDS = 20.0  # that a command which only reads waits
SILENT_SECONDS = 15.0  # without an answer, after which that is said
# Of these libraries come errors of the network that are no OSError: MLflow's clients of buckets.
CLIENTS = ("azure", "boto3", "botocore", "google", "requests", "urllib3")


class AwayError(UserError):
    """What a sweep needs has been away for longer than it waits (--outage-seconds)."""


@contextlib.contextmanager
def awaited(what: str) -> Iterator[None]:
    """In the block, a line says so if there is no answer for long: there may never be one."""
    line = "still waiting for %s, which has not answered for %.0f s"
    timer = threading.Timer(SILENT_SECONDS, log.warning, (line, what, SILENT_SECONDS))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Retry:
    """Calls that are tried again while what they talk to is away, for `seconds` in a row.

    From then on each call gets one try, until one succeeds.

    Args:
        what: they talk to, for messages.
        temporary: whether another try may help after this error; others are raised as they are.
        stopped: asked while it waits; from then on it waits no longer.
        way_on: what the user can do in the end.
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
    """Why something failed: of what MLflow's client wraps in several layers the innermost,
    "[Errno 111] Connection refused"."""
    inner: Any = error.__context__
    if not type(inner).__module__.startswith("requests"):
        return first_line(error)
    inner = getattr(inner.args[0], "reason", inner) if inner.args else inner
    inner = getattr(inner, "original_error", inner)  # of a proxy's refusal
    return first_line(inner).rpartition(">: ")[2].rpartition("): ")[2]


def ask_mlflow(action: Callable[[], T]) -> T:
    """What `action` returns, for commands that only read: somebody waits for them."""
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
