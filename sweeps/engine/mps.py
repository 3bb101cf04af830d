"""Trials that share a GPU compute on it at the same time, by NVIDIA's Multi-Process Service (MPS).

Otherwise the GPU gives each process its time in turn, and several trials together are no faster
than one after the other (docs/results.md). The service comes with NVIDIA's driver. A node of Ray
has one for all its GPUs, of this user, which its first trial on a part of a GPU starts.
"""

from __future__ import annotations

import fcntl
import functools
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ali import environment
from ali.errors import UserError
from sweeps.engine.cluster import own_temp_folder

log = logging.getLogger(__name__)

CONTROL = "nvidia-cuda-mps-control"
SYSTEM = Path("/tmp/nvidia-mps/control")  # of a service that the machine's owner has started
SECONDS = 30.0  # that a call of a program may take
ENDING = 2  # seconds in which processes may leave a service that ends
# A small process that fails where CUDA does not work through the service.
PROBE = """
import ctypes
cuda, device, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_void_p()
assert cuda.cuInit(0) == 0 and cuda.cuDeviceGet(ctypes.byref(device), 0) == 0
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
"""


def join(gpus: float, folder: Path | None = None) -> bool:
    """Makes CUDA in this process use the node's service.

    Args:
        gpus: the process's part of a GPU; a whole one needs no service.
        folder: of the service's sockets and logs; default: that of this worker's node of Ray.

    To be called before CUDA is used. Returns False, with the reason in the log, where there is no
    such service or it does not work: then the processes on a GPU take turns.
    """
    if not 0 < gpus < 1 or shutil.which(CONTROL) is None:
        return False
    if environment.has_mps() or SYSTEM.exists():
        return True  # CUDA finds it by itself
    try:
        folder = folder or _folder()
        folder.mkdir(mode=0o700, exist_ok=True)
        with open(folder / "lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _runs(folder):
                _call(folder, CONTROL, "-d")
            _call(folder, sys.executable, "-c", PROBE)
    except (OSError, UserError, subprocess.SubprocessError) as error:
        log.warning("trials on a GPU take turns: its Multi-Process Service fails (%s)", error)
        return False
    environment.set_values(**_variables(folder))
    return True


def ender() -> Callable[[], None]:
    """A function that ends this node's service, if there is one, for after Ray has ended."""
    return functools.partial(end, _folder())


def end(folder: Path) -> None:
    """Ends the service in this folder, if there is one, and deletes the folder."""
    try:
        if folder.is_dir() and _runs(folder):
            _call(folder, CONTROL, asked=f"quit -t {ENDING}")
        shutil.rmtree(folder, ignore_errors=True)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("the GPUs' Multi-Process Service did not end: %s", error)


def _folder() -> Path:
    import ray

    return own_temp_folder() / f"mps-{ray.get_runtime_context().get_node_id()[:12]}"


def _runs(folder: Path) -> bool:
    try:
        _call(folder, CONTROL, asked="get_server_list")
    except subprocess.CalledProcessError:
        return False
    return True


def _variables(folder: Path) -> dict[str, str]:
    return dict.fromkeys(("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"), str(folder))


def _call(folder: Path, *command: str, asked: str = "") -> None:
    """Runs a program for the service in `folder`, `asked` on its standard input."""
    # The trial's CUDA_VISIBLE_DEVICES would leave out the node's other GPUs.
    within = [f"{name}={value}" for name, value in _variables(folder).items()]
    subprocess.run(
        ["env", "-u", "CUDA_VISIBLE_DEVICES", *within, *command], input=asked, text=True,
        timeout=SECONDS, check=True, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
