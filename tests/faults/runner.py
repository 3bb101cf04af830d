"""Runs faults one after the other, and prints a row of the table for each."""

from __future__ import annotations

import contextlib
import time
from functools import cache
from pathlib import Path
from typing import Any

from tests.audit import Findings
from tests.faults import several_hosts, single_host, surroundings
from tests.faults.hosts import Hosts, SweepOnHosts
from tests.faults.sweep import PATIENCE, Fault, SweepUnderTest
from tests.integration.harness import new_database

FAULTS: dict[int, Fault] = dict(
    sorted({**single_host.FAULTS, **several_hosts.FAULTS, **surroundings.FAULTS}.items())
)
ONE_AT_A_TIME = ("--max-concurrent", "1")
HEADER = (
    f"{'':3}{'fault':40}{'trials':>7}{'lost':>6}{'duplicated':>12}{'stuck':>7}"
    f"{'repeated epochs':>17}{'best':>12}{'seconds':>9}"
)


class Runner:
    """Makes the sweeps that faults strike; what these share is made once."""

    def __init__(self, trials: int, folder: Path) -> None:
        self.trials, self.folder = trials, folder
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, number: int) -> bool:
        """Injects a fault and prints its row; True if nothing was lost."""
        fault = FAULTS[number]
        undisturbed = self.undisturbed() if fault.one_at_a_time else None
        sweep = self._sweep_for(fault, f"fault-{number}")
        sweep.epochs_per_restart = fault.epochs_per_restart
        with sweep.held:
            if fault.small_disk:
                sweep.held.enter_context(single_host.small_disk(sweep))
            start = time.monotonic()
            try:
                fault.inject(sweep)
                seconds = time.monotonic() - start
                found = sweep.examine()
            except Exception as error:
                print(f"{number:>2} {fault.what:40} FAILED: {error}", flush=True)
                with contextlib.suppress(Exception):
                    sweep.kill_everything()
                return False
        if undisturbed is None:
            best = recomputed(found)
        else:
            best = "replayed" if found.points == undisturbed else "no"
        good = print_row(number, fault.what, self.trials, found, best, seconds)
        if sweep.drivers > 1:
            print(f"     {sweep.drivers} drivers, one after the other", flush=True)
        return good

    def _sweep_for(self, fault: Fault, name: str) -> SweepUnderTest:
        if fault.on_hosts:
            return self.sweep_on_hosts(name, fault.seconds)
        return self.sweep(name, fault.seconds, ONE_AT_A_TIME if fault.one_at_a_time else ())

    @cache  # noqa: B019
    def undisturbed(self) -> list[Any]:
        """The trials of a sweep without a fault, one at a time."""
        sweep = self.sweep("undisturbed", 0.02, ONE_AT_A_TIME)
        sweep.start_driver()
        sweep.wait_for_end()
        return sweep.examine().points

    def sweep(self, name: str, seconds: float, options: tuple[str, ...] = ()) -> SweepUnderTest:
        folder = self.folder.resolve() / name
        (folder / "runs").mkdir(parents=True)
        env = {"TOY_SECONDS": str(seconds), "OMP_NUM_THREADS": "1"}
        env["RAY_raylet_start_wait_time_s"] = str(PATIENCE)
        env["RAY_TMPDIR"] = str(self.folder.resolve())  # joins no cluster that runs here
        return SweepUnderTest(
            folder, env=env, trials=self.trials, options=options, database=self.database()
        )

    @cache  # noqa: B019
    def database(self) -> Path:
        return new_database(self.folder.resolve() / "database")

    def sweep_on_hosts(self, name: str, seconds: float) -> SweepOnHosts:
        hosts = self.hosts()
        hosts.wait_for_all_nodes()
        folder = hosts.shared / name
        folder.mkdir()
        env = {"TOY_SECONDS": str(seconds)}
        return SweepOnHosts(folder, name, env=env, trials=self.trials, hosts=hosts)

    @cache  # noqa: B019
    def hosts(self) -> Hosts:
        return self._stack.enter_context(Hosts(3))


def recomputed(found: Findings) -> str:
    """What the table says of the best trial if every value was compared with what is right."""
    return "recomputed" if found.best is not None and not found.lost else "no"


def print_row(
    number: int, what: str, trials: int, found: Findings, best: str, seconds: float
) -> bool:
    """Prints a row, and under it what is wrong; True if nothing is."""
    again = f"{found.repeated} in {found.restarts}"
    print(
        f"{number:>2} {what:40}{trials:>7}{len(found.lost):>6}{len(found.duplicated):>12}"
        f"{len(found.stuck):>7}{again:>17}{best:>12}{seconds:>9.0f}",
        flush=True,
    )
    for line in found.wrong:
        print(f"     {line}", flush=True)
    return not found.wrong and best != "no"
