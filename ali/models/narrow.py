"""Operations of narrow networks on one CPU thread, compiled from narrow_*.c: several times as fast.

With 4 or 8 channels, PyTorch's kernels fill only part of a vector register, and each operation
reads and writes its maps again. Here a convolution and each of its gradients
is one call, and so are batch norm, leaky ReLU and dropout together.

Without a C compiler, and for wide layers or several threads, ali.models.layers does the same with
PyTorch's operations; results then differ by rounding. Nothing here knows of autograd:
ali.models.narrow_chain has the gradients of a whole chain of layers. Activations are of a type in
narrow_library.DEFINES, channels-last; weights, statistics and their gradients are fp32.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ali.models import narrow_library
from ali.models.narrow_library import Activation, Shape, call

MAPS = 64  # of the widest convolution that is faster here: measured at widths 1/8 and 1/4
WIDEST = 2048  # most channels for batch norm in narrow_elementwise.c


class _Switch(threading.local):
    on = True


_switch = _Switch()


@contextlib.contextmanager
def left_out() -> Iterator[None]:
    """In the block, PyTorch's own operations are used, as without a compiler."""
    before, _switch.on = _switch.on, False
    try:
        yield
    finally:
        _switch.on = before


def is_used(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this module handles activations of this type; compiles it on first use."""
    cpu = device.type == "cpu" and torch.get_num_threads() == 1
    return _switch.on and cpu and narrow_library.library(dtype) is not None


def updates(optimizer: torch.optim.Adam, weights: Sequence[Tensor]) -> bool:
    """Whether `adam` can take a step: from the second on, when the weights have moments."""
    used = is_used(weights[0].device, weights[0].dtype)
    return used and all(weight in optimizer.state for weight in weights)


def activation(
    slope: float, words: Tensor | None = None, least: int = 0, scale: float = 1.0
) -> Activation:
    """Leaky ReLU; then dropout, if there are words: int16, one for each element. Those of at least
    `least` keep theirs, which is multiplied by `scale`."""
    if words is None:
        return Activation(slope, None, 0, 1.0)
    made = Activation(slope, words.data_ptr(), least, scale)
    made.memory = words
    return made


# Convolutions and their gradients ------------------------------------------------------------

Sizes = tuple[int, int, int, int, int, int]  # of a convolution: as Shape, without the batch


def serves(h: Tensor, weight: Tensor) -> bool:
    """Whether a convolution of h (B, C, H, W) with weight (·, ·, k, k), or a transposed one, is
    faster here; one to or from a single pixel is a matrix product."""
    return h.dim() == 4 and max(weight.shape[:2]) <= MAPS and is_used(h.device, h.dtype)


def conv_sizes(h: Tensor, weight: Tensor, stride: int) -> Sizes:
    """Sizes of the valid convolution of h (B, C, H, W) with weight (O, C, k, k)."""
    (_, c, height, width), (o, _, k, _) = h.shape, weight.shape
    return height, width, c, o, k, stride


def tconv_sizes(h: Tensor, weight: Tensor, stride: int) -> Sizes:
    """Sizes of the convolution that is transposed, for h (B, C, H, W) and weight (C, O, k, k)."""
    (_, c, height, width), (_, o, k, _) = h.shape, weight.shape
    return (height - 1) * stride + k, (width - 1) * stride + k, o, c, k, stride


def conv(h: Tensor, weight: Tensor, bias: Tensor | None, sizes: Sizes) -> Tensor:
    """The convolution: (B, C, H, W) → (B, O, H', W')."""
    height, width, _, o, k, stride = sizes
    size = h.shape[0], o, (height - k) // stride + 1, (width - k) // stride + 1
    out, shape = empty(size, h.dtype), Shape(h.shape[0], *sizes)
    call("convolve", h.dtype, packed(h), packed(weight), bias, out, shape)
    return out


def tconv(g: Tensor, weight: Tensor, sizes: Sizes) -> Tensor:
    """The transposed one, also the gradient of the convolution's input: to (B, C, H, W)."""
    height, width, c = sizes[:3]
    out, shape = empty((g.shape[0], c, height, width), g.dtype), Shape(g.shape[0], *sizes)
    call("convolve_transposed", g.dtype, packed(g), packed(weight), out, shape)
    return out


def conv_weights(h: Tensor, g: Tensor, sizes: Sizes, biased: bool) -> list[Tensor]:
    """Gradients of weight (O, C, k, k), and bias: h is the convolution's input, g its output's."""
    _, _, c, o, k, _ = sizes
    g_weight, g_bias = empty((o, c, k, k), torch.float32), torch.empty(o) if biased else None
    shape = Shape(h.shape[0], *sizes)
    call("convolve_weights", h.dtype, packed(h), packed(g), g_weight, g_bias, shape)
    return [g_weight] if g_bias is None else [g_weight, g_bias]


# Matrix products: h (B, K) of rows in memory as the weights' are -------------------------------


def linear(h: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """h wᵀ + bias (B, N), for weight (N, …) with K numbers a row."""
    out = torch.empty(h.shape[0], weight.shape[0], dtype=h.dtype)
    sizes = h.shape[0], weight.numel() // weight.shape[0], weight.shape[0]
    call("linear", h.dtype, h, packed(weight), bias, out, *sizes)
    return out


def linear_transposed(g: Tensor, weight: Tensor) -> Tensor:
    """g w (B, N), for weight (K, …) with N numbers a row."""
    sizes = g.shape[0], weight.shape[0], weight.numel() // weight.shape[0]
    out = torch.empty(g.shape[0], sizes[2], dtype=g.dtype)
    call("linear_transposed", g.dtype, g, packed(weight), out, *sizes)
    return out


def linear_weights(g: Tensor, h: Tensor, weight: Tensor, biased: bool = False) -> list[Tensor]:
    """Gradients of weight (M, …), gᵀ h for g (B, M) and h (B, N), and of a bias, Σ g."""
    g_weight, m = torch.empty_like(weight), g.shape[1]
    g_bias = torch.empty(m) if biased else None
    call("linear_weights", g.dtype, g, h, g_weight, g_bias, g.shape[0], m, h.shape[1])
    return [g_weight] if g_bias is None else [g_weight, g_bias]


# Batch norm, leaky ReLU and dropout ------------------------------------------------------------


def normalise(
    h: Tensor,
    running: tuple[Tensor, Tensor],
    gamma: Tensor,
    beta: Tensor,
    momentum: float,
    eps: float,
    activation: Activation,
) -> tuple[Tensor, Tensor]:
    """Batch norm of h (B, C, …) in training mode, leaky ReLU and dropout; and mean, 1/σ (2, C)."""
    out, statistics = torch.empty_like(h), torch.empty(2, gamma.shape[0])
    call(
        "normalise", h.dtype, h, out, h.numel(), gamma.shape[0], gamma, beta, *running,
        momentum, eps, statistics, activation,
    )  # fmt: skip
    return out, statistics


def normalise_backward(
    g: Tensor, h: Tensor, gamma: Tensor, beta: Tensor, statistics: Tensor, activation: Activation
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of h, γ and β."""
    g_h, g_gamma, g_beta = map(torch.empty_like, (h, gamma, beta))
    call(
        "normalise_backward", h.dtype, g, h, g_h, h.numel(), gamma.shape[0], gamma, beta,
        statistics, g_gamma, g_beta, activation,
    )  # fmt: skip
    return g_h, g_gamma, g_beta


def activate(g: Tensor, h: Tensor, activation: Activation, out: Tensor | None = None) -> Tensor:
    """g times the derivative of leaky ReLU and dropout at h; forward, g is h."""
    out = torch.empty_like(h) if out is None else out
    call("activate", h.dtype, g, h, out, h.numel(), activation)
    return out


# Adam ----------------------------------------------------------------------------------------


def adam(
    optimizer: torch.optim.Adam, weights: Sequence[Tensor], gradients: Sequence[Tensor]
) -> None:
    """A step of the optimizer after its first; gradients have the weights' memory layout."""
    (group,) = optimizer.param_groups
    states = [optimizer.state[weight] for weight in weights]
    moments = [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")]
    count = len(weights)

    def pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
        return (ctypes.c_void_p * count)(*[tensor.data_ptr() for tensor in tensors])

    sizes = (ctypes.c_long * count)(*[weight.numel() for weight in weights])
    arrays = map(pointers, (weights, gradients, *moments))
    how = (group["lr"], *group["betas"], group["eps"])
    call("adam", weights[0].dtype, count, sizes, *arrays, *how)


def packed(h: Tensor) -> Tensor:
    """h in channels-last memory."""
    return h.contiguous(memory_format=torch.channels_last) if h.dim() == 4 else h.contiguous()


def empty(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory for (B, C, H, W), channels-last, or (B, C)."""
    layout = torch.channels_last if len(size) == 4 else torch.contiguous_format
    return torch.empty(size, dtype=dtype, memory_format=layout)
