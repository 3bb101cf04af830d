"""Faults on purpose, each on a sweep of short trials of a toy objective, and what is lost by them.

    python benchmarks/faults.py [--only 1 6 …] [--trials 24] [--soak MINUTES]

Real processes and signals: faults 2 to 5, 7 and 8 strike hosts that this machine plays
(cluster/testbed, as root), the others a sweep on this machine alone. After each, an audit
(fault_audit.py) counts trials that are lost, that is missing, wrong or not in the same end state
in Tune, Optuna and MLflow; runs or epochs that are there twice; what is left RUNNING; and epochs
that were trained again. "best": the best trial has the metrics that it has without the fault: all
trials are those of an undisturbed sweep (replayed, one trial at a time), or every value is what the
trial's logged configuration gives (recomputed). Exit code 1 where anything was lost.

--soak runs one sweep after the other for so long, with a random fault every minute.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "cluster" / "testbed"))

from fault_audit import USUAL, Count, count
from harness import Toy
from testbed import DESK, SHARED, Host, Testbed

from sweeps.engine import tracking
from sweeps.engine.tracking import DIVERGED, OUT_OF_MEMORY

ALONE = ("--max-concurrent", "1")  # a search that replays exactly
PATIENCE = 900  # seconds for what should happen within a minute: the machine may be busy
RAY = "--num-cpus=1 --object-store-memory=100000000"  # of a host: they share this machine's cores


@dataclass
class Run(Toy):
    """A toy sweep of `trials`; its drivers, one after the other, write to driver.log."""

    trials: int = 24
    options: tuple[str, ...] = ()
    drivers: int = 0
    ends: dict[str, list[str]] = field(default_factory=dict)  # that trials may have but for USUAL
    interval: int = 1  # epochs that a restart may repeat
    resumes: int = 0  # times that a driver may give up and be gone on with

    def go(self, *options: str) -> None:
        """Starts the sweep, or a driver that goes on with it."""
        again = ["--resume"] if self.drivers else []
        self.drivers += 1
        with (self.folder / "driver.log").open("a") as out:
            self.process = self.start(
                "--num-trials", str(self.trials), *self.options, *again, *options, out=out
            )

    def until(self, share: float) -> None:
        """Waits until so many epochs were trained, as a share of the number of trials."""
        self.wait(lambda: self.epochs().total() >= share * self.trials)

    def wait(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self.process.poll() is not None and not self.again():
                raise RuntimeError(f"the sweep ended before its fault: {self.said()[-300:]}")
            if time.monotonic() > deadline:
                raise TimeoutError(self.said()[-300:])
            time.sleep(0.02)

    def end(self) -> None:
        """Waits for the sweep's end."""
        while (code := self.process.wait(timeout=PATIENCE)) != 0:
            if not self.again():
                raise RuntimeError(f"exit code {code}: {self.said()[-600:]}")

    def again(self) -> bool:
        """Goes on with a sweep whose driver gave up, where that is allowed."""
        if self.process.returncode == 0 or not self.resumes:
            return False
        self.resumes -= 1
        self.go()
        return True

    def said(self) -> str:
        return (self.folder / "driver.log").read_text()

    def kill(self) -> None:
        """kill -9 of the driver, and of nothing else."""
        self.process.kill()
        self.process.wait()

    def abandon(self) -> None:
        """Ends what is left of a sweep that did not come to its end."""
        os.killpg(self.process.pid, signal.SIGKILL)

    def trial_process(self) -> int:
        """The process of a running trial."""
        found: list[int] = []
        self.wait(lambda: found.extend(_trials_of(self.process.pid)) or found)
        return found[0]

    def audit(self) -> Count:
        return count(self, self.trials, self.ends, self.interval)


def _trials_of(pid: int) -> Iterator[int]:
    """Of the processes that a driver has started, and those that they have, the ones that train."""
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::ResourceTrainable"):
            yield pid
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                yield from _trials_of(int(child))


# --- several hosts


class Bed(Testbed):
    """Three hosts with the project, one Ray cluster and, on the head, MLflow over PostgreSQL.

    What `ray up` does by ssh is done here by a shell on each host, with the same scripts.
    """

    def __enter__(self) -> Bed:
        super().__enter__()
        try:
            self._furnish()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _furnish(self) -> None:
        token = secrets.token_hex(32)
        for name in self._names:
            home = self.hosts[name].folder / "home"
            shutil.copytree(self.hosts[DESK].folder / "home" / "ali-sweeps", home / "ali-sweeps")
            (home / ".ray").mkdir()
            (home / ".ray" / "auth_token").write_text(token)
        nodes = [self._popen(name, f"bash cluster/node.sh {SHARED}") for name in self._names]
        if any(node.wait() for node in nodes):
            logs = [self.hosts[name].folder / "shell.log" for name in self._names]
            raise RuntimeError("\n".join(log.read_text()[-1000:] for log in logs))

    def start(self) -> None:
        """MLflow and Ray on the head, Ray on the others."""
        self.on("head", f"bash cluster/mlflow.sh {SHARED}")
        self.on("head", f"ray stop --force; ray start --head --port=6379 {RAY}")
        for name in self._names[1:]:
            self.join(name)
        self.whole()

    def join(self, name: str) -> None:
        """Starts Ray on a worker, anew where it ran."""
        head = self.hosts["head"].address
        self.on(name, f"ray stop --force; ray start --address={head}:6379 {RAY}")

    def whole(self) -> None:
        self.on("head", f"python cluster/nodes.py --wait {len(self._names)} --seconds {PATIENCE}")

    def revive(self, name: str) -> None:
        """A host whose power was taken comes back, with its disk and its address."""
        old = self.hosts[name]
        old.kill()
        gone = ["nsenter", "-t", str(self._switch.pid), "-n", "ip", "link", "show", f"to-{name}"]
        while subprocess.run(gone, capture_output=True).returncode == 0:
            time.sleep(0.1)  # the kernel takes the cable away after the host
        self.hosts[name] = Host(name, old.address, old.folder, self.shared)
        self.hosts[name].plug(self._switch.pid)
        self.wait_for_ssh(name)

    def link(self, name: str, state: str) -> None:
        """Pulls a host's cable out of the switch (`down`), or puts it back (`up`)."""
        at = ["nsenter", "-t", str(self._switch.pid), "-n"]
        subprocess.run([*at, "ip", "link", "set", f"to-{name}", state], check=True)

    def on(self, name: str, command: str) -> str:
        """Runs a shell command on a host; returns what it wrote."""
        log = self.hosts[name].folder / "shell.log"
        before = log.stat().st_size if log.exists() else 0
        code = self._popen(name, command).wait(timeout=PATIENCE)
        said = log.read_text()[before:]
        if code:
            raise RuntimeError(f"{name}: exit code {code} of {command}\n{said[-2000:]}")
        return said

    def _popen(self, name: str, command: str) -> subprocess.Popen:
        # to a file: what a command leaves running would hold a pipe open
        with (self.hosts[name].folder / "shell.log").open("a") as log:
            return subprocess.Popen(
                self.hosts[name].command(f"touch ~/.ali-sweeps/env; {ENVIRONMENT}; {command}"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill_process(self, name: str, pattern: str) -> None:
        """kill -9 of a host's processes whose command line matches, but not pkill's own shell's."""
        self.on(name, f"pkill -9 -f '{pattern}'")


ENVIRONMENT = ". ~/.ali-sweeps/env; export OMP_NUM_THREADS=1"


@dataclass
class Away(Run):
    """A sweep whose driver runs on the head of several hosts; `folder` is on the shared storage."""

    bed: Bed | None = None

    def start(self, *options: str, out: Any = subprocess.PIPE) -> subprocess.Popen:
        assert self.bed is not None
        there = f"{SHARED}/{self.folder.name}"
        told = " ".join(f"{key}='{value}'" for key, value in self.env.items())
        command = (
            f"{ENVIRONMENT}; {told} TOY_LOG={there}/toy.log exec python "
            f"tests/integration/toy_sweep.py --name {self.name} --output-dir {there}/runs "
        )
        return subprocess.Popen(
            self.bed.hosts["head"].command(command + " ".join(options)),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )

    def abandon(self) -> None:
        assert self.bed is not None
        self.bed.kill_process("head", "[t]oy_sweep.py")

    def audit(self) -> Count:
        assert self.bed is not None
        script, there = "benchmarks/fault_audit.py", f"{SHARED}/{self.folder.name}"
        said = self.bed.on(
            "head",
            f"python {script} {there} {self.name} {self.trials} --uri $MLFLOW_TRACKING_URI",
        )
        return Count(**json.loads(said.splitlines()[-1]))


# --- the faults; each starts a sweep, strikes, and sees it to its end


def kill_trial(run: Run) -> None:
    run.go()
    for share in (0.2, 0.5, 0.8, 1.1):
        run.until(share)
        os.kill(run.trial_process(), signal.SIGKILL)
    run.end()


def kill_raylet(run: Away) -> None:
    assert run.bed is not None
    run.go()
    for share, host in ((0.3, "worker-1"), (0.8, "worker-2")):
        run.until(share)
        run.bed.kill_process(host, "[r]aylet/raylet")
        time.sleep(10)
        run.bed.join(host)
    run.end()


def cut_network(run: Away) -> None:
    assert run.bed is not None
    run.go()
    run.until(0.3)
    run.bed.link("worker-1", "down")
    time.sleep(60)
    run.bed.link("worker-1", "up")
    run.end()
    run.bed.join("worker-1")


def lose_host(run: Away) -> None:
    assert run.bed is not None
    run.go()
    run.until(0.3)
    run.bed.hosts["worker-2"].kill()
    run.end()
    run.bed.revive("worker-2")
    run.bed.join("worker-2")


def spot_notice(run: Away) -> None:
    assert run.bed is not None
    run.go()
    run.until(0.3)
    notice = "--reason DRAIN_NODE_REASON_PREEMPTION --reason-message spot"
    head = run.bed.hosts["head"].address
    run.bed.on(
        "worker-2",
        f"ray drain-node --address {head}:6379 {notice} --deadline-remaining-seconds 30",
    )
    time.sleep(30)
    run.bed.hosts["worker-2"].kill()
    run.end()
    run.bed.revive("worker-2")
    run.bed.join("worker-2")


def kill_driver(run: Run) -> None:
    run.go()
    run.wait((run.runs / run.name / "optuna.journal").exists)
    run.kill()
    for share in (0.2, 0.6, 1.0):
        run.go()
        run.until(share)
        run.kill()
    run.go()
    run.end()


def restart_head(run: Away) -> None:
    assert run.bed is not None
    run.go()
    run.until(0.5)
    run.bed.revive("head")
    run.process.wait(timeout=PATIENCE)
    run.bed.start()
    run.go()
    run.end()


def lose_mlflow(run: Away) -> None:
    assert run.bed is not None
    run.go()
    run.until(0.3)
    run.bed.kill_process("head", "[m]lflow[ .]server")
    stop = f"/usr/lib/postgresql/*/bin/pg_ctl -D {SHARED}/mlflow/database -m immediate stop"
    run.bed.on("head", f"cd /; runuser -u postgres -- {stop}")
    time.sleep(120)
    run.bed.on("head", f"bash cluster/mlflow.sh {SHARED}")
    run.end()


def full_then_readonly(run: Run) -> None:
    run.resumes = 2
    run.go()
    run.until(0.3)
    full(run)
    run.until(0.9)
    readonly(run)
    run.end()


def full(run: Run) -> None:
    filler = run.runs / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))
    time.sleep(10)
    filler.unlink()


def readonly(run: Run) -> None:
    # What is opened from now on is read-only. The kernel refuses to remount what is being written.
    subprocess.run(["mount", "--bind", run.runs, run.runs], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", run.runs], check=True)
    time.sleep(10)
    subprocess.run(["umount", "-l", run.runs], check=True)


def damage_checkpoint(run: Run) -> None:
    run.go()
    for number, share in enumerate((0.2, 0.5, 0.8, 1.1)):
        run.until(share)
        damage(run, truncate=number % 2 == 0)
    run.end()


def damage(run: Run, truncate: bool) -> None:
    """A trial's process is killed, and its newest checkpoint is cut short or has a bit flipped."""
    found: list[Path] = []

    def two() -> bool:
        for folder in (run.runs / run.name).glob("0*"):
            if len(list(folder.glob("checkpoint_*/sums.json"))) > 1:
                found[:] = [folder]
                return bool(list(_trials_of(run.process.pid)))
        return False

    run.wait(two)
    os.kill(run.trial_process(), signal.SIGKILL)
    newest = max(found[0].glob("checkpoint_*"))
    files = sorted(f for f in newest.rglob("*") if f.is_file() and f.stat().st_size)
    file = random.choice(files)
    content = bytearray(file.read_bytes())
    if truncate:
        del content[len(content) // 2 :]
    else:
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    file.write_bytes(content)


def run_out_of_memory(run: Run) -> None:
    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(memory[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
    limit = 1 - (free - 3 * 2**20) / total  # 3 GiB more than is in use now
    run.env |= {
        "RAY_memory_usage_threshold": f"{limit:.3f}",
        "TOY": json.dumps({"4": "memory@1", "9": "hog@1"}),
    }
    run.ends = {"00004": [OUT_OF_MEMORY], "00009": [OUT_OF_MEMORY]}
    run.go()
    run.end()


def hang(run: Run) -> None:
    run.options += ("--hang-seconds", "20")
    run.go()
    for share in (0.3, 0.9):
        run.until(share)
        os.kill(run.trial_process(), signal.SIGSTOP)
    run.end()


def nan_storm(run: Run) -> None:
    half = {number: f"nan@{1 + number % 3}" for number in range(0, run.trials, 2)}
    run.env["TOY"] = json.dumps(half)
    run.ends = {f"{n:05d}": [DIVERGED] if n % 3 == 0 else [DIVERGED, *USUAL[1:]] for n in half}
    run.go()
    run.end()


# Moves the time of day of a process by $CLOCK_OFFSET's seconds, and what waits until one back by as
# many; libfaketime 0.9.10 breaks Python's sleep, which waits on the monotonic clock.
CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static volatile long *shared;
__attribute__((constructor)) static void map(void) {
    int file = open(getenv("CLOCK_OFFSET"), O_RDONLY | O_CLOEXEC);
    void *at = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
    if (at != MAP_FAILED) shared = at;
    close(file);
}
static long offset(void) { return shared ? *shared : 0; }
static long call(long n, long a, long b, long c, long d, long e, long f) {
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall" : "=a"(result)
                     : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
static int of_day(clockid_t clock) {
    return clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    long code = call(SYS_clock_gettime, clock, (long)now, 0, 0, 0, 0);
    if (code < 0) { errno = -code; return -1; }
    if (of_day(clock)) now->tv_sec += offset();
    return 0;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    now->tv_sec = time.tv_sec; now->tv_usec = time.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
/* A time since 1970, as the kernel has it; one of the monotonic clock is far smaller. */
static const struct timespec *back(const struct timespec *until, struct timespec *room) {
    if (!until || until->tv_sec < 1000000000) return until;
    *room = *until;
    room->tv_sec -= offset();
    return room;
}
#define TIMED(name, parameters, ...) \
    int name parameters { \
        static int (*real) parameters; \
        struct timespec room; \
        if (!real) real = dlvsym(RTLD_NEXT, #name, "GLIBC_2.34"); \
        if (!real) real = dlvsym(RTLD_NEXT, #name, "GLIBC_2.30"); \
        if (!real) real = dlvsym(RTLD_NEXT, #name, "GLIBC_2.3.2"); \
        if (!real) real = dlsym(RTLD_NEXT, #name); \
        return real(__VA_ARGS__, back(until, &room)); \
    }
#define UNTIL const struct timespec *until
TIMED(pthread_cond_timedwait, (pthread_cond_t *c, pthread_mutex_t *m, UNTIL), c, m)
TIMED(pthread_cond_clockwait, (pthread_cond_t *c, pthread_mutex_t *m, clockid_t k, UNTIL), c, m, k)
TIMED(sem_timedwait, (sem_t *s, UNTIL), s)
TIMED(sem_clockwait, (sem_t *s, clockid_t k, UNTIL), s, k)
long syscall(long number, ...) {
    va_list list;
    long a[6];
    va_start(list, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
    va_end(list);
    struct timespec room;
    if (number == SYS_futex && (a[1] & FUTEX_CLOCK_REALTIME))
        a[3] = (long)back((const struct timespec *)a[3], &room);
    long code = call(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (code < 0 && code > -4096) { errno = -code; return -1; }
    return code;
}
"""


def clock_jump(run: Run) -> None:
    """The time of day of the driver, Ray and the trials jumps an hour ahead, then two back."""
    source, library = run.folder / "clock.c", run.folder / "clock.so"
    source.write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    offset = run.folder / "offset"
    offset.write_bytes(struct.pack("l", 0))
    run.env |= {"LD_PRELOAD": str(library.resolve()), "CLOCK_OFFSET": str(offset.resolve())}
    run.go()
    for share, jump in ((0.3, 3600), (0.8, -3600)):
        run.until(share)
        with offset.open("r+b") as file:
            file.write(struct.pack("l", jump))
    run.end()


def two_drivers(run: Run) -> None:
    """Two start at the same moment, on a folder without a database; later two more."""
    both = []
    run.database = None
    for _ in range(2):
        run.drivers = 0
        run.go()
        both.append(run.process)
    while all(process.poll() is None for process in both):
        time.sleep(0.1)
    refused, run.process = sorted(both, key=lambda process: process.poll() is None)
    codes = [refused.returncode]
    run.until(0.2)
    with (run.folder / "driver.log").open("a") as out:
        later = [run.start(*options, out=out) for options in ([], ["--resume"])]
    codes += [process.wait(timeout=PATIENCE) for process in later]
    if codes != [2, 2, 2]:
        raise RuntimeError(f"exit codes of those that were to refuse: {codes}\n{run.said()}")
    run.end()


@dataclass(frozen=True)
class Fault:
    """A row of the table."""

    what: str
    inject: Callable[[Any], None]
    hosts: bool = False
    alone: bool = False  # one trial at a time, to be compared with an undisturbed sweep
    interval: int = 1
    seconds: float = 0.3  # of an epoch


FAULTS = {
    1: Fault("a trial's process killed, 4 times", kill_trial, alone=True),
    2: Fault("raylets of 2 hosts killed", kill_raylet, hosts=True, seconds=1),
    3: Fault("a host's network cut for 60 s", cut_network, hosts=True, seconds=3),
    4: Fault("a host gone for good", lose_host, hosts=True, seconds=1),
    5: Fault("spot notice, gone 30 s later", spot_notice, hosts=True, seconds=2),
    6: Fault("driver killed 4 times, resumed", kill_driver, alone=True),
    7: Fault("head restarted, resumed", restart_head, hosts=True, seconds=1),
    8: Fault("MLflow and its database away for 120 s", lose_mlflow, hosts=True, seconds=3),
    9: Fault("storage full, freed; read-only", full_then_readonly),
    10: Fault("4 checkpoints damaged", damage_checkpoint, alone=True, interval=2),
    11: Fault("2 trials out of memory", run_out_of_memory),
    12: Fault("2 trials stopped, no result for 20 s", hang, alone=True),
    13: Fault("half of all trials diverge", nan_storm),
    14: Fault("clock 1 h ahead, then 2 h back", clock_jump),
    15: Fault("a second driver, 3 times", two_drivers, seconds=2),
}


class Bench:
    """Runs faults one after the other; what they share is made once."""

    def __init__(self, trials: int, folder: Path) -> None:
        self.trials, self.folder = trials, folder
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @cache  # noqa: B019
    def bed(self) -> Bed:
        return self._stack.enter_context(Bed(3))

    @cache  # noqa: B019
    def undisturbed(self) -> list[Any]:
        """The trials of a sweep without a fault, one at a time."""
        run = self.run("undisturbed", 0.02, ALONE)
        run.go()
        run.end()
        return run.audit().points

    def run(self, name: str, seconds: float, options: tuple[str, ...] = ()) -> Run:
        folder = self.folder / name
        folder.mkdir()
        (folder / "runs").mkdir()
        env = {"TOY_SECONDS": str(seconds), "OMP_NUM_THREADS": "1"}
        env["RAY_raylet_start_wait_time_s"] = str(PATIENCE)
        env["RAY_TMPDIR"] = str(self.folder.resolve())  # joins no cluster that runs here
        return Run(folder, env=env, trials=self.trials, options=options, database=self.database())

    @cache  # noqa: B019
    def database(self) -> Path:
        """A new MLflow database to copy: making its tables takes longer than a toy sweep."""
        folder = self.folder / "database"
        folder.mkdir()
        tracking.connect(tracking.default_uri(folder))
        return folder / "mlflow.db"

    def away(self, name: str, seconds: float) -> Away:
        bed = self.bed()
        bed.whole()
        folder = bed.shared / name
        folder.mkdir()
        env = {"TOY_SECONDS": str(seconds)}
        return Away(folder, name, env=env, trials=self.trials, bed=bed)

    def row(self, number: int) -> bool:
        """Injects a fault and prints its row; True where nothing was lost."""
        fault, name = FAULTS[number], f"fault-{number}"
        if fault.hosts:
            run: Run = self.away(name, fault.seconds)
        else:
            run = self.run(name, fault.seconds, ALONE if fault.alone else ())
        run.interval = fault.interval
        undisturbed = self.undisturbed() if fault.alone else None
        with small_disk(run) if number == 9 else contextlib.nullcontext():
            start = time.monotonic()
            try:
                fault.inject(run)
                seconds = time.monotonic() - start
                found = run.audit()
            except Exception as error:
                print(f"{number:>2} {fault.what:40} FAILED: {error}", flush=True)
                with contextlib.suppress(Exception):
                    run.abandon()
                return False
        if undisturbed is None:
            best = "recomputed" if found.best is not None and not found.lost else "no"
        else:
            best = "replayed" if found.points == undisturbed else "no"
        good = tell(number, fault.what, self.trials, found, best, seconds)
        if run.drivers > 1:
            print(f"     {run.drivers} drivers, one after the other", flush=True)
        return good


def tell(number: int, what: str, trials: int, found: Count, best: str, seconds: float) -> bool:
    """Prints a row, and under it what is wrong; True where nothing is."""
    again = f"{found.repeated} in {found.starts}"
    print(
        f"{number:>2} {what:40}{trials:>7}{len(found.lost):>6}{len(found.duplicated):>12}"
        f"{len(found.stuck):>7}{again:>17}{best:>12}{seconds:>9.0f}",
        flush=True,
    )
    wrong = [*found.lost, *found.duplicated, *found.stuck, *found.beyond]
    for line in wrong:
        print(f"     {line}", flush=True)
    return not wrong and best != "no"


HEAD = (
    f"{'':3}{'fault':40}{'trials':>7}{'lost':>6}{'duplicated':>12}{'stuck':>7}"
    f"{'repeated epochs':>17}{'best':>12}{'seconds':>9}"
)


@contextlib.contextmanager
def small_disk(run: Run) -> Iterator[None]:
    """A file system of its own under the sweep's runs."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", run.runs], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", run.runs], check=True)


# --- soak


def soak(bench: Bench, minutes: float) -> bool:
    """Sweeps for so long, with a fault a minute; prints a row a sweep; True if nothing was lost."""

    def kill_a_trial(run: Run) -> None:
        os.kill(run.trial_process(), signal.SIGKILL)

    def stop_a_trial(run: Run) -> None:
        os.kill(run.trial_process(), signal.SIGSTOP)

    def kill_the_driver(run: Run) -> None:
        run.kill()

    def second_driver(run: Run) -> None:
        with (run.folder / "driver.log").open("a") as out:
            assert run.start("--resume", out=out).wait(timeout=PATIENCE) in (0, 2)

    def damage_a_checkpoint(run: Run) -> None:
        damage(run, truncate=random.random() < 0.5)

    kinds = [kill_a_trial, stop_a_trial, kill_the_driver, second_driver, damage_a_checkpoint]
    kinds += [full, readonly]
    until, good, number = time.monotonic() + 60 * minutes, True, 0
    while time.monotonic() < until:
        number += 1
        run = bench.run(f"soak-{number}", 1.0, ("--hang-seconds", "20", "--max-failures", "10"))
        run.interval, did, start = 2, [], time.monotonic()
        with small_disk(run):
            run.go()
            strike = time.monotonic() + 60
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    if run.process.wait(timeout=0.5) == 0:
                        break
                    run.go()
                if time.monotonic() > strike and run.epochs() and run.process.poll() is None:
                    kind = random.choice(kinds)
                    with contextlib.suppress(RuntimeError):  # the sweep was at its end
                        kind(run)
                        did.append(kind.__name__)
                    strike = time.monotonic() + 60
            found = run.audit()
        best = "recomputed" if found.best is not None and not found.lost else "no"
        took = time.monotonic() - start
        good &= tell(number, f"soak: {len(did)} faults", bench.trials, found, best, took)
        print(f"     {', '.join(did)}", flush=True)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", type=int, nargs="+", choices=FAULTS, metavar="FAULT")
    parser.add_argument("--trials", type=int, default=24, help="of each sweep")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="random faults for so long")
    parser.add_argument("--keep", type=Path, help="folder for logs and runs, which then stay")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        bench = stack.enter_context(Bench(options.trials, folder))
        print(HEAD, flush=True)
        if options.soak:
            good = soak(bench, options.soak)
        else:
            good = True
            for number in options.only or FAULTS:
                good &= bench.row(number)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
