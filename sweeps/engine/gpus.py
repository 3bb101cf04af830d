"""GPUs that trials share: their memory, and NVIDIA's Multi-Process Service (MPS).

By the service processes compute on a GPU at the same time. Otherwise they take turns, and together
are no faster than one after the other (docs/results.md). Its programs come with NVIDIA's driver. A
user has one service on a node, for all GPUs: the first trial on a part of a GPU starts it, and it
ends when no process has used it for a while, however those have ended.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ali import environment
from ali.errors import UserError
from sweeps.engine.cluster import own_temp_folder

log = logging.getLogger(__name__)

MOST = 4  # trials on a GPU by default
USABLE = 0.95  # of the memory that nvidia-smi tells, at least
CONTROL = "nvidia-cuda-mps-control"
SYSTEM = Path("/tmp/nvidia-mps/control")  # of a service that the machine's owner has started
SECONDS = 30.0  # that a call of a program may take: the service starts on every GPU of a node
IDLE = 30.0  # seconds without a process, after which a service ends
AGAIN = 600.0  # seconds until a service that has failed is tried again
# Files of a service: three locks, and a mark.
USERS, STARTING, KEPT, FAILED = "users", "starting", "kept", "failed"
# Processes of a few megabytes. The first fails where CUDA does not work, or not by the service,
# without which it goes on as if there had never been one.
PROBE = f"""
import ctypes, subprocess
cuda, device, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_void_p()
assert cuda.cuInit(0) == 0 and cuda.cuDeviceGet(ctypes.byref(device), 0) == 0
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
asked = dict(input="get_server_list", capture_output=True, text=True, timeout={SECONDS})
assert subprocess.run(["{CONTROL}"], **asked).stdout.strip()
"""
# The second ends the service: who uses it holds a lock on a file together with the others.
KEEPER = f"""
import fcntl, subprocess, sys, time
def control(asked):
    try:
        asked = dict(input=asked, capture_output=True, text=True, timeout={SECONDS})
        return subprocess.run(["{CONTROL}"], **asked).returncode
    except subprocess.TimeoutExpired:
        return 1
def free(file):
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
idle = float(sys.argv[3])
with open(sys.argv[1], "a") as users, open(sys.argv[2], "a") as keeper:
    used, keeps = time.monotonic(), free(keeper)  # or another one does
    while keeps:
        time.sleep(idle / 10)
        if not free(users):
            used = time.monotonic()
        elif time.monotonic() < used + idle:
            fcntl.flock(users, fcntl.LOCK_UN)
        else:  # nobody can join before it has ended
            keeps = False
            control("quit -t 1")
            end = time.monotonic() + {SECONDS}
            while time.monotonic() < end and control("get_server_list") == 0:
                time.sleep(0.1)
"""
_held: list[IO[str]] = []  # by this process, until it ends: the lock of its service's users


@dataclass(frozen=True)
class Cards:
    """A node's GPUs.

    Attributes:
        memory: of the smallest, in bytes.
        shared: whether the service's program is there.
    """

    memory: int
    shared: bool


def trials_on_a_gpu(memory: int | None) -> int:
    """How many trials share a GPU by default: up to where more gain little (docs/results.md).

    One if they would take turns on it, or where it is not known what it has or what they take.

    Args:
        memory: what a trial takes of a GPU's, in bytes.
    """
    cards = find_cards() if memory is not None else None
    if memory is None or cards is None or not cards.shared:
        return 1
    return max(1, min(MOST, int(USABLE * cards.memory) // memory))


def find_cards() -> Cards | None:
    """The least of what the nodes of the Ray cluster have that have GPUs.

    None: none has come yet, or it is not known, as of parts of a GPU (MIG), which are not shared.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = [
        ray.remote(num_cpus=0, max_retries=0)(describe_cards)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote()
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU")
    ]
    if not asked:
        return None
    answered, late = ray.wait(asked, num_returns=len(asked), timeout=SECONDS)
    for task in late:
        ray.cancel(task, force=True)
    try:
        found: list[Cards | None] = ray.get(answered)
    except Exception as error:  # a node that has just been lost
        log.warning("the memory of GPUs is not known, so trials do not share them: %s", error)
        return None
    known = [cards for cards in found if cards is not None]
    if len(known) < len(asked):
        return None
    return Cards(min(one.memory for one in known), all(one.shared for one in known))


def describe_cards() -> Cards | None:
    """This machine's, by nvidia-smi; None where that fails, or a GPU is divided (MIG)."""
    try:
        if "MIG" in _run("nvidia-smi", "-L"):
            return None
        told = _run("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
        memory = min(int(line) for line in told.split()) * 2**20
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return Cards(memory, shutil.which(CONTROL) is not None)


def join(gpus: float) -> bool:
    """Makes CUDA in this process use the node's service, which it starts if need be.

    Args:
        gpus: the process's part of a GPU; a whole one needs no service.

    To be called before CUDA is used. Returns False, with the reason in the log, where there is no
    such service or it does not work: then the processes on a GPU take turns.
    """
    if not 0 < gpus < 1 or shutil.which(CONTROL) is None:
        return False
    try:
        if environment.has_mps() or SYSTEM.exists():  # CUDA finds it by itself
            _run(sys.executable, "-c", PROBE)
        else:
            _use(own_temp_folder() / "mps")
    except (OSError, UserError, subprocess.SubprocessError) as error:
        log.warning("trials on a GPU take turns: its Multi-Process Service fails (%s)", error)
        return False
    return True


def _use(folder: Path) -> None:
    """Uses the service of this folder until the process ends."""
    folder.mkdir(mode=0o700, exist_ok=True)
    names = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
    variables, failed = dict.fromkeys(names, str(folder)), folder / FAILED
    users = open(folder / USERS, "a", encoding="utf-8")  # noqa: SIM115
    try:
        _lock(users, fcntl.LOCK_SH)
        with open(folder / STARTING, "a", encoding="utf-8") as starting:
            _lock(starting, fcntl.LOCK_EX)
            if failed.exists() and time.time() - failed.stat().st_mtime < AGAIN:
                raise UserError("as it did a short while ago")
            try:
                _start(folder, variables)
                _run(sys.executable, "-c", PROBE, **variables)
            except Exception:
                failed.touch()
                raise
            failed.unlink(missing_ok=True)
    except BaseException:
        users.close()
        raise
    _held.append(users)
    environment.set_values(**variables)


def _lock(file: IO[str], kind: int) -> None:
    """Raises UserError if it is not to be had in time."""
    end = time.monotonic() + 4 * SECONDS
    while True:
        try:
            return fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise UserError(f"{file.name} is locked") from None
        time.sleep(0.05)


def _start(folder: Path, variables: dict[str, str]) -> None:
    """Starts the service, and its keeper, where they do not run."""
    kept, apart = folder / KEPT, '"$@" > /dev/null 2>&1'
    keeper = sys.executable, "-c", KEEPER, str(folder / USERS), str(kept), str(IDLE)
    _run("sh", "-c", f"{apart} &", "sh", *keeper, **variables)
    if _runs(variables):
        return
    # The trial's CUDA_VISIBLE_DEVICES would leave out the node's other GPUs.
    service = "env", "-u", "CUDA_VISIBLE_DEVICES", CONTROL, "-d"
    _run("sh", "-c", apart, "sh", *service, **variables)
    end = time.monotonic() + SECONDS
    while not _runs(variables) and time.monotonic() < end:
        time.sleep(0.1)


def _runs(variables: dict[str, str]) -> bool:
    try:
        _run(CONTROL, asked="get_server_list", **variables)
    except subprocess.CalledProcessError:
        return False
    return True


def _run(*command: str, asked: str = "", **variables: str) -> str:
    """What a program prints, with these variables and `asked` on its standard input."""
    given = [f"{name}={value}" for name, value in variables.items()]
    done = subprocess.run(
        ["env", *given, *command], input=asked, text=True, timeout=SECONDS, check=True,
        start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return done.stdout
