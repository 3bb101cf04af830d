"""Processes of a benchmark, which do not outlive it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from ali.errors import UserError


def apart(calls: Sequence[tuple[Callable[..., None], tuple[Any, ...]]]) -> None:
    """Calls functions side by side, each in a process of its own, which does not outlive this.

    Raises UserError if one fails.
    """
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_call, args=(os.getpid(), *call)) for call in calls]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()
    if any(process.exitcode for process in processes):
        raise UserError("a process failed, its error stands above: run the command again")


def _call(parent: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    end_with(parent)
    function(*arguments)


def end_with(parent: int, sent: signal.Signals = signal.SIGKILL) -> None:
    """From now on: `sent` to this process when its parent has ended, however it did."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), sent)

    threading.Thread(target=watch, daemon=True).start()
