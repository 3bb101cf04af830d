"""The operations of a table row, implemented to be fast on a CPU without a compiler.

A step of Table 3 is about 1 GFLOP per image. Plain torch under bf16 autocast reaches 40 to 50 % of
the speed of matrix products on the same cores, this about 70 % (benchmarks/step.py). Each of these
measures equals plain torch (tests/ali/models/test_layers.py):

- Activations stay in one dtype (bf16 where the hardware has it), channels-last, from end to end; a
  weight is cast once per step.
- A map of one pixel is a vector, and a convolution onto or out of it a matrix product: oneDNN's
  convolutions reach a third to a tenth of its matmul there.
- Strided convolutions between the smallest maps take their weight gradient from unfold + matmul:
  oneDNN's takes up to twice as long.
- Dropout masks are random 64-bit words, each read as four 16-bit ones; `bernoulli_` draws one
  number per element. Integer comparison and multiplication, which write the bits of 1/(1−p) or
  of 0, are vectorised; arithmetic on bool tensors is not, and ten times slower.
- Leaky ReLU and the next layer's dropout are one multiplier: one product forward, one backward.

On one thread, ali.models.narrow_chain does the same for training where there is a C compiler.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from ali import distributed
from ali.models import narrow

BN_EPS = 1e-4
BN_MOMENTUM = 0.05  # of the running statistics: 0.05 new + 0.95 old

UNFOLD_PIXELS = 16  # strided layers use unfold if the smaller map has at most this many
INTEGER = {torch.bfloat16: torch.int16, torch.float32: torch.int32}


# Dropout and leaky ReLU ---------------------------------------------------------------------


def dropout_words(like: Tensor, generator: distributed.RandomSource) -> Tensor:
    """Uniform over −2¹⁵ … 2¹⁵ − 1, int16 (B, numbers a row), for `like` (B, …) in its memory."""

    def uniform(rows: int, rng: torch.Generator) -> Tensor:
        n = rows * like[0].numel()
        words = torch.empty((n + 3) // 4, dtype=torch.int64, device=like.device)
        # None: all 64 bits; the default range lacks the sign bit, which biases one word in four
        words.random_(-(2**63), None, generator=rng)
        return words.view(torch.int16)[:n].view(rows, -1)

    return distributed.draw_rows(generator, len(like), uniform)


def least_kept(p: float) -> int:
    """The smallest of `dropout_words` whose element is kept at dropout p."""
    return min(round(p * 2**16), 2**16 - 1) - 2**15


def dropout_multiplier(like: Tensor, p: float, generator: distributed.RandomSource) -> Tensor:
    """0 with probability p, else 1/(1−p), elementwise; shape and type of `like`, channels-last.

    p is rounded to 1/65536, and 1/(1−p) to the precision of the type.
    """
    words = dropout_words(like, generator)
    torch.ge(words, least_kept(p), out=words)  # 1: keep
    bits = _bits(1 / (1 - p), like.dtype)
    multiplier = words.to(INTEGER[like.dtype]).mul_(bits).view(like.dtype)
    if like.dim() == 2:
        return multiplier.view(like.shape)
    b, c, h, w = like.shape
    return multiplier.view(b, h, w, c).permute(0, 3, 1, 2)


@functools.cache
def _bits(value: float, dtype: torch.dtype) -> int:
    return int(torch.tensor(value, dtype=dtype).view(INTEGER[dtype]).item())


def dropout(h: Tensor, p: float, generator: distributed.RandomSource | None) -> Tensor:
    """Inverted elementwise dropout; without a generator or at p = 0, h itself."""
    if generator is None or p == 0:
        return h
    return h * dropout_multiplier(h, p, generator)


def leaky_relu_dropout(
    h: Tensor, slope: float, p: float, generator: distributed.RandomSource | None
) -> Tensor:
    """Leaky ReLU, then dropout (none without a generator or at p = 0), slope in [0, 1]."""
    multiplier = None
    if generator is not None and p > 0:
        multiplier = dropout_multiplier(h, p, generator)
    return _LeakyReLUDropout.apply(h, slope, multiplier)


def maxout(h: Tensor, pieces: int) -> Tensor:
    """Maximum over `pieces` adjacent maps: (B, C, …) → (B, C / pieces, …), layout kept."""
    if h.dim() == 2:
        return h.unflatten(1, (-1, pieces)).max(dim=2).values
    return _nchw(_nhwc(h).unflatten(3, (-1, pieces)).max(dim=4).values)


class _LeakyReLUDropout(torch.autograd.Function):
    """Saves the joint multiplier, or the output if no dropout; not h, which can be freed."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, slope: float, multiplier: Tensor | None) -> Tensor:
        ctx.slope, ctx.drops = slope, multiplier is not None
        if multiplier is None:
            out = F.leaky_relu(h, slope)
            ctx.save_for_backward(out)
            return out
        # leaky_relu_backward(m, h) is m where h > 0, else slope · m
        multiplier = torch.ops.aten.leaky_relu_backward(multiplier, h, slope, False)
        ctx.save_for_backward(multiplier)
        return h * multiplier

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (saved,) = ctx.saved_tensors
        if ctx.drops:
            return g * saved, None, None
        return torch.ops.aten.leaky_relu_backward(g, saved, ctx.slope, True), None, None


# Convolutions -------------------------------------------------------------------------------


def conv(h: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Valid convolution of h (B, I, H, W), or (B, I) for a single pixel, with weight (O, I, k, k).

    Returns (B, O, H', W') channels-last, or (B, O) where H' = 1.
    """
    k = weight.shape[2]
    if 1 < k < h.shape[-1] and not torch.is_grad_enabled() and narrow.serves(h, weight):
        return narrow.conv(h, weight, bias, narrow.conv_sizes(h, weight, stride))
    weight, bias = weight.to(h.dtype), None if bias is None else bias.to(h.dtype)
    if h.dim() == 2:
        return F.linear(h, _rows(weight), bias)
    if h.shape[2:] == weight.shape[2:]:
        return F.linear(_nhwc(h).flatten(1), _rows(weight), bias)
    if not _by_unfold(h, (h.shape[2] - k) // stride + 1, stride):
        return F.conv2d(h, weight, bias, stride)
    # One node per gradient, so that autograd skips the weight's where only h's is needed
    out = _nchw(F.linear(unfold(h.detach(), k, stride), _rows(weight), bias))
    return _DataGradient.apply(out, h, weight.detach(), stride)


def tconv(h: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Valid transposed convolution of h (B, I, H, W), or (B, I) for a single pixel.

    weight (I, O, k, k); returns (B, O, H', W') channels-last.
    """
    if not torch.is_grad_enabled() and narrow.serves(h, weight):
        return narrow.tconv(h, weight, narrow.tconv_sizes(h, weight, stride))
    weight, (maps, k) = weight.to(h.dtype), weight.shape[1:3]
    if h.dim() == 2:
        return _nchw((h @ _rows(weight)).view(len(h), k, k, maps))
    if not _by_unfold(h, h.shape[2], stride):
        return F.conv_transpose2d(h, weight, None, stride)
    return _StridedTransposed.apply(h, weight, stride)


def unfold(h: Tensor, k: int, stride: int) -> Tensor:
    """h (B, C, H, W) → the k × k patch below each output pixel, (B, H', W', k·k·C)."""
    b, c, height, width = h.shape
    n, m = (height - k) // stride + 1, (width - k) // stride + 1
    sb, sc, sh, sw = h.stride()
    patches = h.as_strided((b, n, m, k, k, c), (sb, sh * stride, sw * stride, sh, sw, sc))
    return patches.reshape(b, n, m, k * k * c)


class _DataGradient(torch.autograd.Function):
    """Identity on a convolution's output; its backward gives the gradient of the input h."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, h: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.stride = h.shape, stride
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return g, conv2d_input(ctx.shape, weight, g, ctx.stride), None, None


class _StridedTransposed(torch.autograd.Function):
    """Transposed convolution whose gradients are both products with the unfolded gradient."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(h, weight)
        ctx.stride = stride
        return F.conv_transpose2d(h, weight, None, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        h, weight = ctx.saved_tensors
        maps, k = weight.shape[1:3]
        patches = unfold(g, k, ctx.stride)  # (B, H, W, k·k·O)
        g_weight = _nhwc(h).flatten(0, 2).t() @ patches.flatten(0, 2)  # (I, k·k·O)
        return (
            _nchw(patches @ _rows(weight).t()),
            _nchw(g_weight.view(-1, k, k, maps)),
            None,
        )


def _by_unfold(h: Tensor, size: int, stride: int) -> bool:
    """`size`: side of the smaller map in pixels. Only oneDNN's bf16 is slow here."""
    small = stride > 1 and size * size <= UNFOLD_PIXELS
    return small and h.dtype == torch.bfloat16 and h.device.type == "cpu"


def _rows(weight: Tensor) -> Tensor:
    """(A, B, k, k) → (A, k·k·B), a view of channels-last memory."""
    return _nhwc(weight).flatten(1)


def _nhwc(h: Tensor) -> Tensor:
    return h.permute(0, 2, 3, 1)


def _nchw(h: Tensor) -> Tensor:
    return h.permute(0, 3, 1, 2)
