"""Training with several workers (processes of torch.distributed), equal to that with one.

Each worker holds the whole State and 1/N of every batch. Except for rounding, nothing differs from
one worker with the whole batch:

- Randomness. All workers have the same generator and draw noise, z, dropout masks and the order of
  the data for the whole batch; each takes its own rows. So the numbers do not depend on N, and a
  checkpoint can be resumed with any other number of workers.
- Batch norm. Mean and variance are those of the whole batch, and so is the gradient through them.
- Gradients and losses are averaged over the workers, each of which then takes the same step. What a
  loss is not linear in, such as a difference of means, is averaged before (`mean`).

Where torch.distributed is not initialised there is one worker, and nothing here costs anything.
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


def world_size() -> int:
    """Number of workers."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This worker's number, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def check_world_size(batch_size: int, workers: int) -> None:
    """Raises UserError unless each worker gets the same number of images of a batch."""
    if batch_size % workers:
        raise UserError(
            f"a batch of {batch_size} images cannot be split evenly across {workers} workers: "
            "choose a number of workers that divides it"
        )


def shard(x: Tensor) -> Tensor:
    """This worker's rows of a batch."""
    return x if world_size() == 1 else x.chunk(world_size())[rank()]


@dataclass(frozen=True)
class ShardedGenerator:
    """A generator that is the same in all workers, each of which keeps its rows of what it draws.

    Attributes:
        rows: a worker's rows of one batch. Where two batches are concatenated, as images and
            samples are for the discriminator, a worker has its rows of each.
    """

    generator: torch.Generator
    rows: int


RandomSource = torch.Generator | ShardedGenerator


def random_source(generator: torch.Generator, rows: int) -> RandomSource:
    """The random source of a step with `rows` rows per worker."""
    return generator if world_size() == 1 else ShardedGenerator(generator, rows)


def draw_rows(
    source: RandomSource, rows: int, draw: Callable[[int, torch.Generator], Tensor]
) -> Tensor:
    """draw(rows, generator) → (rows, …): this worker's rows of the whole batch."""
    if isinstance(source, torch.Generator):
        return draw(rows, source)
    whole = draw(rows * world_size(), source.generator)
    return whole.unflatten(0, (-1, world_size(), source.rows))[:, rank()].flatten(0, 1)


def all_reduce_mean(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Means over the workers, in one message; the tensors have the same dtype."""
    if world_size() == 1:
        return list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= world_size()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def mean(of_shard: Tensor) -> Tensor:
    """The mean over the workers of what each has found, for a loss that is not linear in it.

    Each worker's gradient is that of the summed losses with respect to its own share, which
    all_reduce_mean of the weights' gradients divides.
    """
    if world_size() == 1:
        return of_shard
    (whole,) = all_reduce_mean([of_shard.detach()])
    return of_shard + (whole - of_shard.detach())


def on_rank_zero(function: Callable[[], T]) -> T:
    """Runs `function` in worker 0; all workers wait, and return or raise what it did."""
    if world_size() == 1:
        return function()
    outcome: list[Any] = [None, None]  # result, error
    if rank() == 0:
        try:
            outcome[0] = function()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


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
    out, mean, var = _BatchNorm.apply(h, gamma, beta, eps)
    n = world_size() * h.numel() // h.shape[1]
    with torch.no_grad():
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * (n / (n - 1)), momentum)
    return out


class _BatchNorm(torch.autograd.Function):
    """Returns the output, and mean and biased variance of the whole batch, (C,) fp32 each."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, gamma: Tensor, beta: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide, dims = h.float(), _all_but_maps(h)
        (mean,) = all_reduce_mean([wide.mean(dims)])
        (var,) = all_reduce_mean([(wide - _per_map(mean, h)).square().mean(dims)])
        ctx.save_for_backward(h, gamma, mean, (var + eps).rsqrt())
        ctx.mark_non_differentiable(mean, var)
        return F.batch_norm(h, mean, var, gamma, beta, False, 0.0, eps), mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        h, gamma, mean, inverse_std = ctx.saved_tensors
        g_wide, dims = g.float(), _all_but_maps(h)
        x_hat = (h.float() - _per_map(mean, h)) * _per_map(inverse_std, h)
        g_beta, g_gamma = g_wide.sum(dims), (g_wide * x_hat).sum(dims)
        # A worker's loss depends on all rows through mean and variance: this is the gradient of
        # the summed losses, which all_reduce_mean of the weights' gradients divides.
        n = h.numel() // h.shape[1]
        m_beta, m_gamma = all_reduce_mean([g_beta / n, g_gamma / n])
        g_h = g_wide - _per_map(m_beta, h) - x_hat * _per_map(m_gamma, h)
        return (g_h * _per_map(gamma * inverse_std, h)).to(h.dtype), g_gamma, g_beta, None


def _all_but_maps(h: Tensor) -> list[int]:
    return [dim for dim in range(h.dim()) if dim != 1]


def _per_map(values: Tensor, h: Tensor) -> Tensor:
    return values.view(1, -1, *(1,) * (h.dim() - 2))
