"""One training over several processes (torch.distributed): N workers do what one would do.

Each worker holds the whole State and has 1/N of every batch. To rounding, nothing else differs from
one worker with the whole batch:

- Randomness. All have the same generator and draw noise, z, dropout masks and the order of the data
  for the whole batch; each takes its own rows. So the stream does not depend on N, and a checkpoint
  goes on with any other number of workers.
- Batch norm. Mean and variance are those of the whole batch; so is the gradient through them.
- Gradients and losses are means over the workers, each of which then takes the same step.

Where no default group exists there is one worker, and nothing here costs anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ali.errors import UserError

T = TypeVar("T")


def workers() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This one's number among them."""
    return dist.get_rank() if workers() > 1 else 0


def check(batch_size: int, count: int) -> None:
    """Raises UserError where so many workers cannot have as many images of a batch each."""
    if batch_size % count:
        raise UserError(
            f"{count} workers cannot share a batch of {batch_size} evenly: "
            "choose a number that divides it"
        )


def own(x: Tensor) -> Tensor:
    """This worker's rows of a batch."""
    return x if workers() == 1 else x.chunk(workers())[rank()]


@dataclass(frozen=True)
class Share:
    """A generator that all workers have alike, and which rows of what it gives are this one's.

    Attributes:
        rows: of one worker in a batch. Where two batches come one after the other, as images and
            samples do before the discriminator, a worker has its rows of each.
    """

    generator: torch.Generator
    rows: int


Source = torch.Generator | Share


def source(generator: torch.Generator, rows: int) -> Source:
    """What a step draws from, of whose batch a worker has so many rows."""
    return generator if workers() == 1 else Share(generator, rows)


def draw(source: Source, rows: int, of: Callable[[int, torch.Generator], Tensor]) -> Tensor:
    """of(rows, generator), (rows, …): with a Share, this worker's rows of that of the whole."""
    if isinstance(source, torch.Generator):
        return of(rows, source)
    whole = of(rows * workers(), source.generator)
    return whole.unflatten(0, (-1, workers(), source.rows))[:, rank()].flatten(0, 1)


def mean(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Means over the workers, in one message; the tensors are of one type."""
    if workers() == 1:
        return list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= workers()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def first(function: Callable[[], T]) -> T:
    """What `function` returns or raises in worker 0, in all of them; the others wait for it."""
    if workers() == 1:
        return function()
    told: list[Any] = [None, None]
    if rank() == 0:
        try:
            told[0] = function()
        except Exception as error:
            told[1] = error
    dist.broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    return told[0]


def batch_norm(
    h: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor,
    beta: Tensor,
    momentum: float,
    eps: float,
) -> Tensor:
    """F.batch_norm in training mode over the rows of all workers, h (B, C, …) in each."""
    out, mean_, var = _BatchNorm.apply(h, gamma, beta, eps)
    n = workers() * h.numel() // h.shape[1]
    with torch.no_grad():
        running_mean.lerp_(mean_, momentum)
        running_var.lerp_(var * (n / (n - 1)), momentum)
    return out


class _BatchNorm(torch.autograd.Function):
    """Returns the output, and mean and biased variance of the whole batch, (C,) fp32 each."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, gamma: Tensor, beta: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide, dims = h.float(), _all_but_maps(h)
        (mean_,) = mean([wide.mean(dims)])
        (var,) = mean([(wide - _per_map(mean_, h)).square().mean(dims)])
        ctx.save_for_backward(h, gamma, mean_, (var + eps).rsqrt())
        ctx.mark_non_differentiable(mean_, var)
        return F.batch_norm(h, mean_, var, gamma, beta, False, 0.0, eps), mean_, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        h, gamma, mean_, inverse_std = ctx.saved_tensors
        g_wide, dims = g.float(), _all_but_maps(h)
        x_hat = (h.float() - _per_map(mean_, h)) * _per_map(inverse_std, h)
        g_beta, g_gamma = g_wide.sum(dims), (g_wide * x_hat).sum(dims)
        # A worker's loss depends on all rows through mean and variance: the gradient is of the
        # workers' sum, and `mean` over the weights' gradients divides it.
        n = h.numel() // h.shape[1]
        m_beta, m_gamma = mean([g_beta / n, g_gamma / n])
        g_h = g_wide - _per_map(m_beta, h) - x_hat * _per_map(m_gamma, h)
        return (g_h * _per_map(gamma * inverse_std, h)).to(h.dtype), g_gamma, g_beta, None


def _all_but_maps(h: Tensor) -> list[int]:
    return [dim for dim in range(h.dim()) if dim != 1]


def _per_map(values: Tensor, h: Tensor) -> Tensor:
    return values.view(1, -1, *(1,) * (h.dim() - 2))
