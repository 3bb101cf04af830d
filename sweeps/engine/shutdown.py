"""Ctrl-C and SIGTERM: the first ends a sweep in order, the second ends the process at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

from sweeps.engine import ray_compat


class GracefulShutdown:
    """Within, the first signal raises KeyboardInterrupt, or while Tune trains ends its loop.

    Args:
        again: the command that resumes the sweep, to print.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, ray_compat.STOP_SIGNAL)

    def __init__(self, again: str) -> None:
        self.requested = False
        self._again, self._tuning, self._writing = again, False, False

    def __enter__(self) -> GracefulShutdown:
        self._before = {number: signal.getsignal(number) for number in self._SIGNALS}
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def ends_tune(self) -> Iterator[None]:
        """Within, Tune's loop is ended, once Tune has installed its handler."""
        self._tuning = True
        try:
            yield
        finally:
            self._tuning = False

    @contextlib.contextmanager
    def postponed(self) -> Iterator[None]:
        """Within, the first signal waits for the end: a write to the study is not cut in two."""
        self._writing = True
        try:
            yield
        finally:
            self._writing = False
        if self.requested:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: Any) -> None:
        # os.write: the signal may have come in the middle of a print
        if self.requested:
            os.write(1, f"stopped at once; resume with: {self._again}\n".encode())
            os._exit(130)  # the kernel ends what Ray has started here, as after a kill -9
        self.requested = True
        os.write(1, b"stopping; press Ctrl-C again to stop at once\n")
        tune = ray_compat.STOP_SIGNAL
        if self._tuning and signal.getsignal(tune) != self._before[tune]:
            signal.raise_signal(tune)
        elif not self._writing:
            raise KeyboardInterrupt
