"""One sweep after the other for as long as is asked, with a random fault every minute.

Each sweep has one of three surroundings, and with them faults of their own: a small disk and a
local database; an MLflow server, which a proxy hides; a bucket. Its drivers write to a log, or to
somebody who does not read.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial

from tests.faults import single_host, surroundings
from tests.faults.runner import Runner, print_row, recomputed
from tests.faults.sweep import PATIENCE, SweepUnderTest
from tests.integration.harness import EPOCHS

SECONDS = 60  # between two faults
AWAY = 30  # seconds that a server, a bucket or a store is away

Kind = tuple[str, Callable[[SweepUnderTest], object]]


# Faults of every sweep


def kill_trial(sweep: SweepUnderTest) -> None:
    os.kill(sweep.trial_process(), signal.SIGKILL)


def stop_trial(sweep: SweepUnderTest) -> None:
    os.kill(sweep.trial_process(), signal.SIGSTOP)


def start_second_driver(sweep: SweepUnderTest) -> None:
    with (sweep.folder / "driver.log").open("a") as out:
        code = sweep.start("--resume", out=out).wait(timeout=PATIENCE)
    if code not in (0, 2):
        raise RuntimeError(f"the second driver: exit code {code}")


def close_terminal(sweep: SweepUnderTest) -> None:
    sweep.process.send_signal(signal.SIGHUP)


def terminate_group(sweep: SweepUnderTest) -> None:
    os.killpg(sweep.process.pid, signal.SIGTERM)


def delete_at_random(sweep: SweepUnderTest) -> None:
    what = random.choice(("trial", "sweep", "experiment"))
    surroundings.delete_in_mlflow(sweep, what, for_good=random.random() < 0.5)


def damage_checkpoint(sweep: SweepUnderTest) -> None:
    single_host.damage_checkpoint(sweep, truncate=random.random() < 0.5)


KINDS: list[Kind] = [
    ("trial killed", kill_trial),
    ("trial stopped", stop_trial),
    ("driver killed", SweepUnderTest.kill_driver),
    ("second driver", start_second_driver),
    ("SIGHUP", close_terminal),
    ("SIGTERM to the group", terminate_group),
    ("SIGTERM to all", surroundings.terminate_family),
    ("deleted in MLflow", delete_at_random),
]


# Surroundings: what each adds


def small_disk(sweep: SweepUnderTest) -> list[Kind]:
    sweep.held.enter_context(single_host.small_disk(sweep))
    sweep.epochs_per_restart = EPOCHS  # a full disk takes no checkpoints
    return [
        ("storage full", single_host.fill_disk),
        ("read-only", single_host.make_readonly),
        ("checkpoint damaged", damage_checkpoint),
    ]


def server_behind_a_proxy(sweep: SweepUnderTest) -> list[Kind]:
    surroundings.name_refusing_proxy(sweep)
    store = surroundings.small_artifact_store(sweep, "8m")
    server = surroundings.log_to_server(sweep)

    def stop_server(_: SweepUnderTest) -> None:
        server.stop()
        time.sleep(AWAY)
        server.start()

    def fill_store(_: SweepUnderTest) -> None:
        filler = surroundings.fill(store)
        time.sleep(AWAY)
        filler.unlink()

    return [
        ("MLflow away", stop_server),
        ("artifact store full", fill_store),
        ("checkpoint damaged", damage_checkpoint),
    ]


def bucket(sweep: SweepUnderTest) -> list[Kind]:
    own = surroundings.Bucket(sweep)
    sweep.epochs_per_restart = EPOCHS  # a bucket that is away takes no checkpoints
    sweep.before_audit = own.fetch_table
    return [
        ("bucket refuses", lambda _: own.refuse(AWAY)),
        ("bucket silent", lambda _: own.be_silent(AWAY)),
    ]


SURROUNDINGS = (small_disk, server_behind_a_proxy, bucket)


def soak(runner: Runner, minutes: float) -> bool:
    """Prints a row a sweep; True if nothing was lost."""
    until, good, number = time.monotonic() + 60 * minutes, True, random.randrange(3)
    while time.monotonic() < until:
        number += 1
        surrounded = SURROUNDINGS[number % len(SURROUNDINGS)]
        options = ("--hang-seconds", "20", "--max-failures", "10")
        sweep = runner.sweep(f"soak-{number}", 1.0, options)
        sweep.epochs_per_restart, start = 2, time.monotonic()
        with sweep.held:
            faults = _strike_until_its_end(sweep, KINDS + surrounded(sweep), until)
            sweep.before_audit()
            found = sweep.examine()
        what, seconds = f"soak: {len(faults)} faults", time.monotonic() - start
        good &= print_row(number, what, runner.trials, found, recomputed(found), seconds)
        print(f"     {surrounded.__name__}: {', '.join(faults)}", flush=True)
    return good


def _strike_until_its_end(sweep: SweepUnderTest, kinds: list[Kind], until: float) -> list[str]:
    """Runs a sweep, resuming it when its driver is gone; returns the names of the faults.

    After `until` none is added.
    """
    faults = [_start(sweep)]
    next_fault = time.monotonic() + SECONDS
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            if sweep.process.wait(timeout=0.5) == 0:
                return list(filter(None, faults))
            faults.append(_start(sweep))
        now = time.monotonic()
        if next_fault < now < until and sweep.epochs() and sweep.process.poll() is None:
            what, strike = random.choice(kinds)
            with contextlib.suppress(RuntimeError):  # the sweep has just ended
                strike(sweep)
                faults.append(what)
            next_fault = time.monotonic() + SECONDS


def _start(sweep: SweepUnderTest) -> str:
    """Starts a driver; returns what is wrong with its output."""
    outputs = {
        "": contextlib.nullcontext,
        "no reader": surroundings.no_reader,
        "reader stopped": partial(surroundings.stopped_reader, sweep),
        "output's disk full": partial(open, "/dev/full", "w"),
    }
    what = random.choice([*outputs, "", ""])
    with outputs[what]() as out:
        sweep.start_driver(out=out)
    return what
