"""One sweep after the other for as long as is asked, with a random fault every minute."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time

from tests.faults import single_host
from tests.faults.runner import Runner, print_row, recomputed
from tests.faults.sweep import PATIENCE, SweepUnderTest

SECONDS = 60  # between two faults


def trial_killed(sweep: SweepUnderTest) -> None:
    os.kill(sweep.trial_process(), signal.SIGKILL)


def trial_stopped(sweep: SweepUnderTest) -> None:
    os.kill(sweep.trial_process(), signal.SIGSTOP)


def driver_killed(sweep: SweepUnderTest) -> None:
    sweep.kill_driver()


def second_driver(sweep: SweepUnderTest) -> None:
    with (sweep.folder / "driver.log").open("a") as out:
        code = sweep.start("--resume", out=out).wait(timeout=PATIENCE)
        assert code in (0, 2)


def checkpoint_damaged(sweep: SweepUnderTest) -> None:
    single_host.damage_checkpoint(sweep, truncate=random.random() < 0.5)


def storage_full(sweep: SweepUnderTest) -> None:
    single_host.fill_disk(sweep)


def storage_readonly(sweep: SweepUnderTest) -> None:
    single_host.make_readonly(sweep)


def terminal_closed(sweep: SweepUnderTest) -> None:
    sweep.process.send_signal(signal.SIGHUP)


def group_terminated(sweep: SweepUnderTest) -> None:
    os.killpg(sweep.process.pid, signal.SIGTERM)


KINDS = [trial_killed, trial_stopped, driver_killed, second_driver, checkpoint_damaged]
KINDS += [storage_full, storage_readonly, terminal_closed, group_terminated]


def soak(runner: Runner, minutes: float) -> bool:
    """Prints a row a sweep; True if nothing was lost."""
    until, good, number = time.monotonic() + 60 * minutes, True, 0
    while time.monotonic() < until:
        number += 1
        options = ("--hang-seconds", "20", "--max-failures", "10")
        sweep = runner.sweep(f"soak-{number}", 1.0, options)
        sweep.epochs_per_restart, start = 2, time.monotonic()
        with single_host.small_disk(sweep):
            faults = _strike_until_its_end(sweep)
            found = sweep.examine()
        what, seconds = f"soak: {len(faults)} faults", time.monotonic() - start
        good &= print_row(number, what, runner.trials, found, recomputed(found), seconds)
        print(f"     {', '.join(faults)}", flush=True)
    return good


def _strike_until_its_end(sweep: SweepUnderTest) -> list[str]:
    """Runs a sweep, resuming it when its driver is gone; returns the names of the faults."""
    faults: list[str] = []
    sweep.start_driver()
    next_fault = time.monotonic() + SECONDS
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            if sweep.process.wait(timeout=0.5) == 0:
                return faults
            sweep.start_driver()
        if time.monotonic() > next_fault and sweep.epochs() and sweep.process.poll() is None:
            kind = random.choice(KINDS)
            with contextlib.suppress(RuntimeError):  # the sweep has just ended
                kind(sweep)
                faults.append(kind.__name__)
            next_fault = time.monotonic() + SECONDS
