"""The sweep that a fault strikes: short toy trials, and one driver after the other."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.audit import Findings, count_repeats, examine_toy
from tests.integration.harness import Toy

PATIENCE = 900  # seconds for what should happen within a minute: the machine may be busy


@dataclass
class SweepUnderTest(Toy):
    """A toy sweep of `trials` trials; all of its drivers write to driver.log."""

    trials: int = 24
    options: tuple[str, ...] = ()
    drivers: int = 0  # started so far
    ends: dict[str, list[str]] = field(default_factory=dict)  # end states allowed, by trial
    epochs_per_restart: int = 1  # that a restarted trial may train again
    before_audit: Callable[[], None] = lambda: None
    resumes: int = 0  # how often a driver may give up and be started again
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)  # until it is examined

    def start_driver(self, *options: str, out: IO | None = None) -> None:
        """Starts the sweep; resumes it if it was started before. `out`: in place of driver.log."""
        resume = ["--resume"] if self.drivers else []
        self.drivers += 1
        with (self.folder / "driver.log").open("a") as log:
            self.process = self.start(
                "--num-trials", str(self.trials), *self.options, *resume, *options, out=out or log
            )

    def wait_for_epochs(self, per_trial: float) -> None:
        """Waits until so many epochs were trained, divided by the number of trials."""
        self.wait(lambda: self.epochs().total() >= per_trial * self.trials)

    def wait(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self.process.poll() is not None and not self.resume_if_allowed():
                raise RuntimeError(f"the sweep ended before its fault: {self.output()[-300:]}")
            if time.monotonic() > deadline:
                raise TimeoutError(self.output()[-300:])
            time.sleep(0.02)

    def wait_for_end(self) -> None:
        while (code := self.process.wait(timeout=PATIENCE)) != 0:
            if not self.resume_if_allowed():
                raise RuntimeError(f"exit code {code}: {self.output()[-600:]}")

    def resume_if_allowed(self) -> bool:
        """Resumes a sweep whose driver gave up, `resumes` times at most."""
        if self.process.returncode == 0 or not self.resumes:
            return False
        self.resumes -= 1
        self.start_driver()
        return True

    def output(self) -> str:
        return (self.folder / "driver.log").read_text()

    def kill_driver(self) -> None:
        """kill -9 of the driver alone."""
        self.process.kill()
        self.process.wait()

    def kill_everything(self) -> None:
        """For a sweep that did not come to its end."""
        os.killpg(self.process.pid, signal.SIGKILL)

    def trial_process(self) -> int:
        """The process of a running trial."""
        found: list[int] = []
        self.wait(lambda: found.extend(trial_processes(self.process.pid)) or found)
        return found[0]

    def examine(self) -> Findings:
        found = examine_toy(self, self.trials, self.ends)
        count_repeats(self.folder, found, self.epochs_per_restart)
        return found


def trial_processes(pid: int) -> Iterator[int]:
    """The processes that train, among a driver's children and theirs."""
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::ResourceTrainable"):
            yield pid
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                yield from trial_processes(int(child))


@dataclass(frozen=True)
class Fault:
    """A row of the table: `inject` starts a sweep, harms it, and waits for its end."""

    what: str
    inject: Callable[[Any], None]
    on_hosts: bool = False
    small_disk: bool = False
    one_at_a_time: bool = False  # trials: the sweep replays exactly what an undisturbed one does
    epochs_per_restart: int = 1
    seconds: float = 0.3  # of an epoch
