"""The C files narrow_*.c, compiled for this processor when first needed and kept in the cache.

A C compiler (cc, or $ALI_CC) takes about two seconds for them.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ali import environment

FOLDER = Path(__file__).parent
SOURCES = tuple(FOLDER / f"narrow_{part}.c" for part in ("convolutions", "elementwise", "linear"))
HEADER = FOLDER / "narrow.h"
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fPIC", "-shared")
DEFINES = {torch.float32: (), torch.bfloat16: ("-DBF16",)}
COMPILE_SECONDS = 60

POINTER, INT, LONG, FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_float


class Shape(ctypes.Structure):
    """Convolution sizes: batch, input, output and kernel, as `shape` in narrow_convolutions.c."""

    _fields_ = [(name, INT) for name in ("batch", "height", "width", "maps", "out", "k", "stride")]


class Activation(ctypes.Structure):
    """Leaky ReLU and dropout, as `activation` in narrow_elementwise.c."""

    _fields_ = [("slope", FLOAT), ("words", POINTER), ("least", INT), ("scale", FLOAT)]
    memory: Tensor  # that of the words


ARGUMENTS = {  # of the functions in C
    "convolve": [*[POINTER] * 4, Shape],
    "convolve_transposed": [*[POINTER] * 3, Shape],
    "convolve_weights": [*[POINTER] * 4, Shape],
    "linear": [*[POINTER] * 4, *[LONG] * 3],
    "linear_transposed": [*[POINTER] * 3, *[LONG] * 3],
    "linear_weights": [*[POINTER] * 4, *[LONG] * 3],
    "normalise": [*[POINTER] * 2, LONG, INT, *[POINTER] * 4, FLOAT, FLOAT, POINTER, Activation],
    "normalise_backward": [*[POINTER] * 3, LONG, INT, *[POINTER] * 5, Activation],
    "activate": [*[POINTER] * 3, LONG, Activation],
    "adam": [INT, *[POINTER] * 6, *[ctypes.c_double] * 4],
}


def call(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Calls the C function for activations of a type; `library` has it."""
    found = library(dtype)
    assert found is not None
    found[name](*[a.data_ptr() if isinstance(a, Tensor) else a for a in arguments])


@functools.cache
def library(dtype: torch.dtype) -> dict[str, Any] | None:
    """The functions of SOURCES, compiled for activations of a type; None where that fails."""
    compiler = shutil.which(environment.c_compiler())
    if compiler is None or dtype not in DEFINES:
        return None
    try:
        loaded = _load([compiler, *FLAGS, *DEFINES[dtype]])
    except (OSError, subprocess.SubprocessError):
        return None
    functions = {name: getattr(loaded, name) for name in ARGUMENTS}
    for name, function in functions.items():
        function.argtypes, function.restype = ARGUMENTS[name], None
    return functions


def _load(command: list[str]) -> ctypes.CDLL:
    """The library compiled from SOURCES by this command, kept in a folder that only this user can
    write to: code that others could change is not run."""
    name = f"narrow-{_fingerprint(command)}.so"
    folder = environment.cache_dir() / f"compiled-{os.getuid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
        if own and not found.st_mode & 0o022:
            if not (folder / name).exists():
                with tempfile.TemporaryDirectory(dir=folder) as building:
                    _compile(command, Path(building) / name)
                    os.replace(Path(building) / name, folder / name)
            return ctypes.CDLL(str(folder / name))
    with tempfile.TemporaryDirectory() as building:
        _compile(command, Path(building) / name)
        return ctypes.CDLL(str(Path(building) / name))


def _compile(command: list[str], to: Path) -> None:
    command = [*command, *map(str, SOURCES), "-o", str(to), "-lm"]
    subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS)


def _fingerprint(command: list[str]) -> str:
    """Hash of all that the compiled file depends on: source, compiler and processor."""
    version = subprocess.run(
        [command[0], "--version"], check=True, capture_output=True, timeout=COMPILE_SECONDS
    )
    cpu = platform.machine() + repr(sorted(torch.cpu.get_capabilities().items()))
    with contextlib.suppress(OSError):  # nodes of a cluster may share a home, and differ
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu += repr(sorted({line for line in told if line.startswith(("flags", "model name"))}))
    files = (path.read_bytes() for path in (HEADER, *SOURCES))
    parts = *files, shlex.join(command).encode(), version.stdout, cpu.encode()
    return hashlib.blake2b(b"\0".join(parts), digest_size=8).hexdigest()
