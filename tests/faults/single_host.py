"""Faults of one machine: processes, disks, checkpoints, memory, clocks, second drivers."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.sweep import PATIENCE, Fault, SweepUnderTest, trial_processes

CLOCK = Path(__file__).with_name("clock.c")


def kill_trials(sweep: SweepUnderTest) -> None:
    sweep.start_driver()
    for per_trial in (0.2, 0.5, 0.8, 1.1):
        sweep.wait_for_epochs(per_trial)
        os.kill(sweep.trial_process(), signal.SIGKILL)
    sweep.wait_for_end()


def kill_drivers(sweep: SweepUnderTest) -> None:
    sweep.start_driver()
    sweep.wait((sweep.runs / sweep.name / "optuna.journal").exists)
    sweep.kill_driver()
    for per_trial in (0.2, 0.6, 1.0):
        sweep.start_driver()
        sweep.wait_for_epochs(per_trial)
        sweep.kill_driver()
    sweep.start_driver()
    sweep.wait_for_end()


@contextlib.contextmanager
def small_disk(sweep: SweepUnderTest) -> Iterator[None]:
    """A file system of its own under the sweep's runs."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", sweep.runs], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", sweep.runs], check=True)


def fill_disk_then_make_it_readonly(sweep: SweepUnderTest) -> None:
    sweep.resumes = 2
    sweep.start_driver()
    sweep.wait_for_epochs(0.3)
    fill_disk(sweep)
    sweep.wait_for_epochs(0.9)
    make_readonly(sweep)
    sweep.wait_for_end()


def fill_disk(sweep: SweepUnderTest) -> None:
    """For ten seconds there is no room on the small disk."""
    filler = sweep.runs / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))
    time.sleep(10)
    filler.unlink()


def make_readonly(sweep: SweepUnderTest) -> None:
    """For ten seconds what is opened on the small disk cannot be written.

    Files that are open stay writable: the kernel does not remount a disk that is being written.
    """
    subprocess.run(["mount", "--bind", sweep.runs, sweep.runs], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", sweep.runs], check=True)
    time.sleep(10)
    subprocess.run(["umount", "-l", sweep.runs], check=True)


def damage_checkpoints(sweep: SweepUnderTest) -> None:
    sweep.start_driver()
    for number, per_trial in enumerate((0.2, 0.5, 0.8, 1.1)):
        sweep.wait_for_epochs(per_trial)
        damage_checkpoint(sweep, truncate=number % 2 == 0)
    sweep.wait_for_end()


def damage_checkpoint(sweep: SweepUnderTest, truncate: bool) -> None:
    """Kills a trial's process, and cuts a file of its newest checkpoint short or flips a bit."""
    found: list[Path] = []

    def has_two_checkpoints() -> bool:
        for folder in (sweep.runs / sweep.name).glob("0*"):
            if len(list(folder.glob("checkpoint_*/metrics.json"))) > 1:
                found[:] = [folder]
                return bool(list(trial_processes(sweep.process.pid)))
        return False

    sweep.wait(has_two_checkpoints)
    os.kill(sweep.trial_process(), signal.SIGKILL)
    newest = max(found[0].glob("checkpoint_*"))
    files = sorted(f for f in newest.rglob("*") if f.is_file() and f.stat().st_size)
    file = random.choice(files)
    content = bytearray(file.read_bytes())
    if truncate:
        del content[len(content) // 2 :]
    else:
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    file.write_bytes(content)


def run_out_of_memory(sweep: SweepUnderTest) -> None:
    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(memory[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
    limit = 1 - (free - 3 * 2**20) / total  # 3 GiB more than is in use now
    sweep.env |= {
        "RAY_memory_usage_threshold": f"{limit:.3f}",
        "TOY": json.dumps({"4": "memory@1", "9": "hog@1"}),
    }
    sweep.ends = {"00004": ["out of memory"], "00009": ["out of memory"]}
    sweep.start_driver()
    sweep.wait_for_end()


def stop_trials(sweep: SweepUnderTest) -> None:
    sweep.options += ("--hang-seconds", "20")
    sweep.start_driver()
    for per_trial in (0.3, 0.9):
        sweep.wait_for_epochs(per_trial)
        os.kill(sweep.trial_process(), signal.SIGSTOP)
    sweep.wait_for_end()


def make_half_diverge(sweep: SweepUnderTest) -> None:
    half = {number: f"nan@{1 + number % 3}" for number in range(0, sweep.trials, 2)}
    sweep.env["TOY"] = json.dumps(half)
    sweep.ends = {  # the later ones may be stopped early before they diverge
        f"{n:05d}": ["diverged"] if n % 3 == 0 else ["diverged", "stopped early"] for n in half
    }
    sweep.start_driver()
    sweep.wait_for_end()


def move_clock(sweep: SweepUnderTest) -> None:
    """The time of day of the driver, Ray and the trials jumps an hour ahead, then two back."""
    library, offset = sweep.folder / "clock.so", sweep.folder / "offset"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, CLOCK, "-ldl"], check=True)
    offset.write_bytes(struct.pack("l", 0))
    sweep.env |= {"LD_PRELOAD": str(library.resolve()), "CLOCK_OFFSET": str(offset.resolve())}
    sweep.start_driver()
    for per_trial, seconds in ((0.3, 3600), (0.8, -3600)):
        sweep.wait_for_epochs(per_trial)
        with offset.open("r+b") as file:
            file.write(struct.pack("l", seconds))
    sweep.wait_for_end()


def start_second_drivers(sweep: SweepUnderTest) -> None:
    """Two start at the same moment, in a folder without a database; later two more."""
    both = []
    sweep.database = None
    for _ in range(2):
        sweep.drivers = 0
        sweep.start_driver()
        both.append(sweep.process)
    while all(process.poll() is None for process in both):
        time.sleep(0.1)
    refused, sweep.process = sorted(both, key=lambda process: process.poll() is None)
    codes = [refused.returncode]
    sweep.wait_for_epochs(0.2)
    with (sweep.folder / "driver.log").open("a") as out:
        later = [sweep.start(*options, out=out) for options in ([], ["--resume"])]
    codes += [process.wait(timeout=PATIENCE) for process in later]
    if codes != [2, 2, 2]:
        raise RuntimeError(f"exit codes of the drivers to be refused: {codes}\n{sweep.output()}")
    sweep.wait_for_end()


FAULTS = {
    1: Fault("a trial's process killed, 4 times", kill_trials, one_at_a_time=True),
    6: Fault("driver killed 4 times, resumed", kill_drivers, one_at_a_time=True),
    9: Fault("storage full, freed; read-only", fill_disk_then_make_it_readonly, small_disk=True),
    10: Fault(
        "4 checkpoints damaged", damage_checkpoints, one_at_a_time=True, epochs_per_restart=2
    ),
    11: Fault("2 trials out of memory", run_out_of_memory),
    12: Fault("2 trials stopped, no result for 20 s", stop_trials, one_at_a_time=True),
    13: Fault("half of all trials diverge", make_half_diverge),
    14: Fault("clock 1 h ahead, then 2 h back", move_clock),
    15: Fault("a second driver, 3 times", start_second_drivers, seconds=2),
}
