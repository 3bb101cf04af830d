"""The operations of one table row, as plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BN_EPS = 1e-4
BN_MOMENTUM = 0.05


def dropout_multiplier(like: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """0 with probability p, else 1/(1−p), elementwise, in the shape, layout and type of `like`."""
    words = torch.empty_like(like, dtype=torch.int16)
    words.random_(-(2**15), 2**15, generator=generator)
    return (words >= round(p * 2**16) - 2**15).to(like.dtype).mul_(1 / (1 - p))


def dropout(h: Tensor, p: float, generator: torch.Generator | None) -> Tensor:
    """Inverted elementwise dropout; `generator` None or p = 0: h itself."""
    if generator is None or p == 0:
        return h
    return h * dropout_multiplier(h, p, generator)


def conv(h: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Valid convolution: h (B, I, H, W), weight (O, I, k, k)."""
    return F.conv2d(h, weight, bias, stride)


def conv_to_point(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolution whose kernel covers its whole input: h (B, I, k, k) or (B, I) → (B, O)."""
    if h.dim() == 4:
        h = h.permute(0, 2, 3, 1).flatten(1)  # (B, k·k·I), a view of channels-last memory
    return F.linear(h, weight.permute(0, 2, 3, 1).flatten(1), bias)


def tconv_from_point(h: Tensor, weight: Tensor) -> Tensor:
    """Transposed convolution of one pixel: h (B, I), weight (I, O, k, k) → (B, O, k, k)."""
    _, maps, k, _ = weight.shape
    out = h @ weight.permute(0, 2, 3, 1).flatten(1)  # (B, k·k·O)
    return out.unflatten(1, (k, k, maps)).permute(0, 3, 1, 2)


def tconv(h: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Valid transposed convolution: h (B, I, H, W), weight (I, O, k, k)."""
    return F.conv_transpose2d(h, weight, None, stride)
