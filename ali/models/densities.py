"""Log-densities of the VAEs, and dense networks with several inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ali.models.base import Normal, wide

MIN_LOG_VAR = -8.0  # of p(x | ·), ours: a learned variance may run away; theirs is linear

Activation = Callable[[Tensor], Tensor]
LOG_2PI = math.log(2 * math.pi)


class _AtLeast(torch.autograd.Function):
    """`clamp(min=low)`, but a step downhill can lift what is below: `clamp` has no gradient there,
    so that a unit whose bias is far below would stay there for ever."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, low: float) -> Tensor:
        ctx.save_for_backward(h < low)
        return h.clamp(min=low)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (below,) = ctx.saved_tensors
        return g.masked_fill(below & (g > 0), 0), None  # g is of a loss, which is minimized


def bounded(log_var: Tensor) -> Tensor:
    """log σ² of p(x | ·), at least MIN_LOG_VAR."""
    return _AtLeast.apply(log_var, MIN_LOG_VAR)


def log_normal(x: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
    """log N(x; μ, diag σ²), summed over the last dimension; log σ² = log_var."""
    return -0.5 * (LOG_2PI + log_var + (x - mu).square() * (-log_var).exp()).sum(dim=-1)


def log_standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I), summed over the last dimension."""
    return -0.5 * (LOG_2PI + z.square()).sum(dim=-1)


def kl_from_prior(mu: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(μ, diag σ²) ‖ N(0, I)), summed over the last dimension."""
    return 0.5 * (mu.square() + log_var.exp() - 1 - log_var).sum(dim=-1)


def draw_normal(normal: Normal, mu: Tensor, log_var: Tensor) -> Tensor:
    """μ + σ ε."""
    return mu + (0.5 * log_var).exp() * normal(tuple(mu.shape)).to(mu.dtype)


def one_hot(y: Tensor, classes: int, like: Tensor) -> Tensor:
    """y (B,) → (B, K), in the type of another tensor."""
    return F.one_hot(y, classes).to(like.dtype)


def random_classes(n: int, classes: int, normal: Normal) -> Tensor:
    """One-hot (n, K) of classes drawn uniformly."""
    draws = normal((n, classes))
    return one_hot(draws.argmax(dim=1), classes, draws)


def over_labels(log_q: Tensor, bounds: Tensor) -> Tensor:
    """Σ_y q(y) [−L_y − log q(y)] (B,), the negative of U: y is summed exactly.

    Args:
        log_q: log q(y | x) (B, K).
        bounds: −L(x, y) (B, K), the bound where y is known.
    """
    return (log_q.exp() * (bounds - log_q)).sum(dim=1)


class DenseNetwork(nn.Module):
    """Hidden layers on several inputs, then linear heads.

    The first layer sums one linear map per input, which equals one map of their concatenation, so
    what depends on x alone is computed once for all classes y. Inputs broadcast.

    Args:
        inputs: their dimensions.
        hidden: units of each hidden layer.
        heads: dimensions of the outputs.
        dtype: of the activations; outputs are fp32, weights too.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        hidden: Sequence[int],
        heads: Sequence[int],
        activation: Activation,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        first, *others = hidden
        self.first = nn.ModuleList(nn.Linear(n, first, bias=i == 0) for i, n in enumerate(inputs))
        self.others = nn.ModuleList(
            nn.Linear(a, b) for a, b in zip(hidden[:-1], others, strict=True)
        )
        self.heads = nn.ModuleList(nn.Linear(hidden[-1], n) for n in heads)
        self.activation, self.dtype = activation, dtype

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The output of each head."""
        parts = [self._linear(layer, h) for layer, h in zip(self.first, inputs, strict=True)]
        h = self.activation(sum(parts[1:], start=parts[0]))
        for layer in self.others:
            h = self.activation(self._linear(layer, h))
        return tuple(wide(self._linear(head, h)) for head in self.heads)

    def _linear(self, layer: nn.Module, h: Tensor) -> Tensor:
        assert isinstance(layer, nn.Linear)
        bias = None if layer.bias is None else layer.bias.to(self.dtype)
        return F.linear(h.to(self.dtype), layer.weight.to(self.dtype), bias)

    def linears(self) -> list[nn.Linear]:
        """All of its layers."""
        return [layer for layer in self.modules() if isinstance(layer, nn.Linear)]
