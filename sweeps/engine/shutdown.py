"""Ctrl-C, SIGTERM and SIGHUP: the first ends a sweep in order, a second one the process at once."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ali.output import write_now
from sweeps.engine import ray_compat
from sweeps.engine.cluster import answers, joined_address, own_raylet

POLL_SECONDS = 0.5
LEAVE_SECONDS = 10.0  # for the main thread to leave a call to Ray's processes that have ended
LOST_SECONDS = 20.0  # without an answer, Ray has ended; after 60, Ray ends this process
RAYLET_SECONDS = 3.0  # the same of this process's raylet; Ray ends it after ten


class GracefulShutdown:
    """In the block, the first signal raises KeyboardInterrupt or, while Tune trains, ends its loop.

    A scheduler may send SIGKILL before running epochs have ended, so MLflow is told at once. It may
    also have ended Ray's processes, for whose answers Tune would wait: then a KeyboardInterrupt
    leaves Tune's loop, whether a stop was requested or not (`without_ray`).

    Args:
        again: the command that resumes the sweep, to print.
        tell: says in MLflow that the sweep is interrupted.
        say: prints a line from a signal's handler; `last`: the process ends right after it.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, ray_compat.STOP_SIGNAL)

    def __init__(
        self,
        again: str,
        tell: Callable[[], None] = lambda: None,
        say: Callable[..., None] = lambda text, last=False: write_now(1, f"{text}\n"),
    ) -> None:
        self.requested = False
        self.without_ray = False
        self._again, self._tell, self._say = again, tell, say
        self._tuning, self._writing = False, False
        self._address: str | None = None  # of the cluster
        self._raylet: str | None = None  # its socket
        self._collects = gc.isenabled()
        self._first: tuple[int, float] = (0, 0.0)  # signal, and when it came

    def __enter__(self) -> GracefulShutdown:
        self._before = {number: signal.getsignal(number) for number in self._SIGNALS}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or self._before[number] != signal.SIG_IGN:  # nohup
                signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._collects and not self.ray_is_gone():
            gc.enable()

    def ray_is_gone(self) -> bool:
        """Whether Ray's processes have ended: whatever asks them for something waits for ever."""
        return self.without_ray or (self.requested and bool(self._silent()))

    def _silent(self) -> float:
        """If a part of Ray does not answer, after how many seconds it has ended; 0: all answer."""
        for address, seconds in ((self._raylet, RAYLET_SECONDS), (self._address, LOST_SECONDS)):
            if address is not None and not answers(address):
                return seconds
        return 0.0

    @contextlib.contextmanager
    def ends_tune(self) -> Iterator[None]:
        """In the block, Tune's loop is ended, once Tune has installed its handler."""
        self._tuning = True
        self._address = joined_address()
        self._raylet = self._address and own_raylet()
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            yield
        finally:
            self._tuning = False

    @contextlib.contextmanager
    def postponed(self) -> Iterator[None]:
        """In the block, the first signal waits: a write to the study is not cut in two."""
        self._writing = True
        try:
            yield
        finally:
            self._writing = False
        if self.requested:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: Any) -> None:
        if self.without_ray and self._tuning:
            raise KeyboardInterrupt
        if self.requested:
            if self._is_same(number):
                return
            self._say(f"stopped at once; resume with: {self._again}", last=True)
            os._exit(130)  # the kernel ends what Ray has started here, as after a kill -9
        self.requested, self._first = True, (number, time.monotonic())
        gc.disable()  # Tune's objects ask Ray's processes when they are collected, amid anything
        self._say("stopping; press Ctrl-C again to stop at once")
        tune = ray_compat.STOP_SIGNAL
        if self._tuning and signal.getsignal(tune) != self._before[tune]:
            signal.raise_signal(tune)
        elif not self._writing:
            raise KeyboardInterrupt

    def _is_same(self, number: int) -> bool:
        """Whether it repeats the first request: a terminal that closes, or `timeout`, sends
        its signal to the process and to its group; systemd sends SIGTERM and SIGHUP."""
        first, when = self._first
        soon = first != signal.SIGINT and time.monotonic() - when < 1
        return number == signal.SIGHUP or (number == signal.SIGTERM and soon)

    def _watch(self) -> None:
        told, answered = False, time.monotonic()
        while self._tuning:
            if self.requested and not told:
                self._tell()
                told = True
            if not (patience := self._silent()):
                answered = time.monotonic()
            elif self.requested or time.monotonic() - answered > patience:
                self.without_ray = True
                gc.disable()
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                self._leave_in_time()
                return
            time.sleep(POLL_SECONDS)

    def _leave_in_time(self) -> None:
        """Ends the process if the main thread stays in a call that nothing will answer."""
        until = time.monotonic() + LEAVE_SECONDS
        while self._tuning:
            if time.monotonic() > until:
                self._say(f"stopped without Ray; resume with: {self._again}", last=True)
                os._exit(130 if self.requested else 1)  # as after a kill -9
            time.sleep(POLL_SECONDS)
