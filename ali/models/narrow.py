"""Layers of narrow networks on one CPU thread, compiled from narrow_*.c: several times as fast.

With 4 or 8 channels, PyTorch's kernels fill only part of a vector register, and each operation
reads and writes its maps again. Here a convolution and each of its gradients
is one call, and so are batch norm, leaky ReLU and dropout together.

A C compiler (cc, or $ALI_CC) compiles the files for this processor when first needed, within two
seconds, and the result is kept in the cache. Without one, and for wide layers or several
threads, ali.models.layers does the same with PyTorch's operations; results then differ by rounding.
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
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ali import environment

MAPS = 64  # of the widest layer that is faster here: measured at widths 1/8 and 1/4
FOLDER = Path(__file__).parent
SOURCES = FOLDER / "narrow_convolutions.c", FOLDER / "narrow_elementwise.c"
HEADER = FOLDER / "narrow.h"
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fPIC", "-shared")
DEFINES = {torch.float32: (), torch.bfloat16: ("-DBF16",)}
WIDEST = 2048  # most channels for batch norm in narrow_elementwise.c
COMPILE_SECONDS = 60

POINTER, INT, LONG, FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_float


class _Switch(threading.local):
    on = True


_switch = _Switch()


class Shape(ctypes.Structure):
    """Convolution sizes: batch, input, output and kernel, as `shape` in narrow_convolutions.c."""

    _fields_ = [(name, INT) for name in ("batch", "height", "width", "maps", "out", "k", "stride")]


ARGUMENTS = {  # of the functions in C
    "convolve": [*[POINTER] * 4, Shape],
    "convolve_transposed": [*[POINTER] * 3, Shape],
    "convolve_weights": [*[POINTER] * 4, Shape],
    "normalise": [*[POINTER] * 2, LONG, INT, *[POINTER] * 4, FLOAT, FLOAT, POINTER, FLOAT, POINTER],
    "normalise_backward": [*[POINTER] * 3, LONG, INT, *[POINTER] * 5, FLOAT, POINTER],
    "activate": [*[POINTER] * 3, LONG, FLOAT, POINTER],
    "adam": [*[POINTER] * 5, LONG, *[ctypes.c_double] * 4],
}


def serves(h: Tensor, *maps: int) -> bool:
    """Whether this module handles a layer with these numbers of maps on an input like h."""
    return max(maps) <= MAPS and h.dim() == 4 and fuses(h)


@contextlib.contextmanager
def left_out() -> Iterator[None]:
    """In the block, PyTorch's own operations are used, as without a compiler."""
    before, _switch.on = _switch.on, False
    try:
        yield
    finally:
        _switch.on = before


def fuses(h: Tensor) -> bool:
    """Whether this module handles what follows an operation with the output h."""
    return h.shape[1] <= WIDEST and _runs(h)


def updates(optimizer: torch.optim.Adam, weights: Sequence[Tensor]) -> bool:
    """Whether `adam` can take a step: from the second on, when the weights have moments."""
    return _runs(weights[0]) and all(weight in optimizer.state for weight in weights)


def is_used(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this module handles activations of this type; compiles it on first use."""
    cpu = device.type == "cpu" and torch.get_num_threads() == 1
    return _switch.on and cpu and _library(dtype) is not None


def _runs(h: Tensor) -> bool:
    return is_used(h.device, h.dtype)


# The operations, as ali.models.layers has them ----------------------------------------------


def conv(h: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Valid convolution of h (B, C, H, W) with weight (O, C, k, k): (B, O, H', W')."""
    h, weight, bias = _packed(h), weight.float(), None if bias is None else bias.float()
    b, c, height, width = h.shape
    o, _, k, _ = weight.shape
    shape = Shape(b, height, width, c, o, k, stride)
    out = _empty((b, o, (height - k) // stride + 1, (width - k) // stride + 1), h)
    kernel = _packed(weight.detach())
    _call("convolve", h, kernel, None if bias is None else bias.detach(), out, shape)
    return _with_gradients(
        out,
        _WeightGradient.apply(out, h.detach(), weight, bias, shape, False),
        _InputGradient.apply(out, h, kernel, shape, False) if h.requires_grad else None,
    )


def tconv(h: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Valid transposed convolution of h (B, C, H, W) with weight (C, O, k, k)."""
    h, weight = _packed(h), weight.float()
    b, c, height, width = h.shape
    _, o, k, _ = weight.shape
    size = (b, o, (height - 1) * stride + k, (width - 1) * stride + k)
    shape = Shape(b, size[2], size[3], o, c, k, stride)  # of the convolution that it transposes
    out, kernel = _empty(size, h), _packed(weight.detach())
    _call("convolve_transposed", h, kernel, out, shape)
    return _with_gradients(
        out,
        _WeightGradient.apply(out, h.detach(), weight, None, shape, True),
        _InputGradient.apply(out, h, kernel, shape, True) if h.requires_grad else None,
    )


def adam(
    optimizer: torch.optim.Adam, weights: Sequence[Tensor], gradients: Sequence[Tensor]
) -> None:
    """A step of the optimizer after its first; gradients have the weights' memory layout."""
    (group,) = optimizer.param_groups
    states = [optimizer.state[weight] for weight in weights]
    how = (group["lr"], *group["betas"], group["eps"])
    for weight, gradient, state in zip(weights, gradients, states, strict=True):
        changed = state["exp_avg"], state["exp_avg_sq"], state["step"]
        _call("adam", weight.detach(), gradient, *changed, weight.numel(), *how)


def _with_gradients(out: Tensor, of_weight: Tensor, of_input: Tensor | None) -> Tensor:
    """The output, whose gradient goes to two nodes; autograd skips a node whose gradient is not
    needed: L_d needs none of x̃, and L_g none of D's weights."""
    return of_weight if of_input is None else _Both.apply(of_weight, of_input)


def batch_norm_leaky_relu(
    h: Tensor,
    running: tuple[Tensor, Tensor],
    gamma: Tensor,
    beta: Tensor,
    momentum: float,
    eps: float,
    slope: float,
    multiplier: Tensor | None,
) -> Tensor:
    """Batch norm of h (B, C, H, W) in training mode, leaky ReLU, and dropout by its multiplier."""
    return _BatchNorm.apply(_packed(h), *running, gamma, beta, momentum, eps, slope, multiplier)


def leaky_relu(h: Tensor, slope: float, multiplier: Tensor | None) -> Tensor:
    """Leaky ReLU of h (B, C, H, W), and dropout by its multiplier."""
    return _LeakyReLU.apply(_packed(h), slope, multiplier)


class _Both(torch.autograd.Function):
    """Merges two tensors with the same values; both get the gradient."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        return a.view_as(a)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        return g, g


class _WeightGradient(torch.autograd.Function):
    """The output of a convolution, or of a transposed one, with the gradients of weight and bias.

    In a transposed one, input and output of the convolution change places.
    """

    @staticmethod
    def forward(
        ctx: Any,
        out: Tensor,
        h: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        shape: Shape,
        transposed: bool,
    ) -> Tensor:
        ctx.save_for_backward(h)
        ctx.shape, ctx.biased, ctx.transposed = shape, bias is not None, transposed
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (h,) = ctx.saved_tensors
        s, g = ctx.shape, _packed(g)
        g_weight = _empty((s.out, s.maps, s.k, s.k))
        g_bias = torch.empty(s.out) if ctx.biased else None
        _call("convolve_weights", *((g, h) if ctx.transposed else (h, g)), g_weight, g_bias, s)
        return None, None, g_weight, g_bias, None, None


class _InputGradient(torch.autograd.Function):
    """The same output with the gradient of the input, which is the other of the two operations."""

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, h: Tensor, weight: Tensor, shape: Shape, transposed: bool
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.size, ctx.transposed = shape, h.shape, transposed
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        g_h = _empty(ctx.size, g)
        if ctx.transposed:
            _call("convolve", _packed(g), weight, None, g_h, ctx.shape)
        else:
            _call("convolve_transposed", _packed(g), weight, g_h, ctx.shape)
        return None, g_h, None, None, None


class _BatchNorm(torch.autograd.Function):
    """Saves its input; leaky ReLU's input is recomputed in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        gamma: Tensor,
        beta: Tensor,
        momentum: float,
        eps: float,
        slope: float,
        multiplier: Tensor | None,
    ) -> Tensor:
        out, statistics = torch.empty_like(h), torch.empty(2, len(gamma))  # mean, 1/σ
        _call(
            "normalise", h, out, h.numel(), len(gamma), gamma, beta, running_mean, running_var,
            momentum, eps, statistics, slope, multiplier,
        )  # fmt: skip
        ctx.save_for_backward(h, gamma, beta, statistics, multiplier)
        ctx.slope = slope
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        h, gamma, beta, statistics, multiplier = ctx.saved_tensors
        g_h, g_gamma, g_beta = map(torch.empty_like, (h, gamma, beta))
        _call(
            "normalise_backward", _packed(g), h, g_h, h.numel(), len(gamma), gamma, beta,
            statistics, g_gamma, g_beta, ctx.slope, multiplier,
        )  # fmt: skip
        return g_h, None, None, g_gamma, g_beta, None, None, None, None


class _LeakyReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, slope: float, multiplier: Tensor | None) -> Tensor:
        out = torch.empty_like(h)
        _call("activate", h, h, out, h.numel(), slope, multiplier)
        ctx.save_for_backward(h, multiplier)
        ctx.slope = slope
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        h, multiplier = ctx.saved_tensors
        g_h = torch.empty_like(h)
        _call("activate", _packed(g), h, g_h, h.numel(), ctx.slope, multiplier)
        return g_h, None, None


def _packed(h: Tensor) -> Tensor:
    return h.contiguous(memory_format=torch.channels_last) if h.dim() == 4 else h.contiguous()


def _empty(size: tuple[int, ...], like: Tensor | None = None) -> Tensor:
    dtype = torch.float32 if like is None else like.dtype
    return torch.empty(size, dtype=dtype, memory_format=torch.channels_last)


def _call(name: str, first: Tensor, *arguments: Any) -> None:
    """Calls the C function for the type of `first`."""
    library = _library(first.dtype)
    assert library is not None
    plain = (a.data_ptr() if isinstance(a, Tensor) else a for a in (first, *arguments))
    getattr(library, name)(*plain)


# The compiled file --------------------------------------------------------------------------


@functools.cache
def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """SOURCES compiled for activations of a type; None where that is not possible."""
    compiler = shutil.which(environment.c_compiler())
    if compiler is None or dtype not in DEFINES:
        return None
    try:
        library = _load([compiler, *FLAGS, *DEFINES[dtype]])
    except (OSError, subprocess.SubprocessError):
        return None
    for name, arguments in ARGUMENTS.items():
        getattr(library, name).argtypes = arguments
        getattr(library, name).restype = None
    return library


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
