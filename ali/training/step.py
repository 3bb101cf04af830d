"""Training steps, Algorithm 1's and other models', and epochs. Writes no files, logs nothing."""

from __future__ import annotations

import ctypes
import time
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor

from ali import data, distributed
from ali.errors import NonFiniteError, UserError
from ali.metrics import IMAGES_PER_SECOND
from ali.models import narrow
from ali.models.base import Labelled, Noise
from ali.models.networks import ALI
from ali.training import step_graph
from ali.training.losses import losses
from ali.training.state import State
from ali.training.step_graph import StepGraph


def device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train_step(state: State, x: Tensor) -> tuple[Tensor, Tensor]:
    """One iteration of Algorithm 1 on x (M, 3, H, W) in [0, 1]; the networks are in training mode.

    With several workers, x is this worker's shard. Returns (L_d, L_g) in nats, before the updates,
    as detached fp32 scalars on the device.
    """
    networks, rng = state.networks, distributed.random_source(state.generator, len(x))

    def normal(shape: tuple[int, ...]) -> Tensor:
        def draw(rows: int, generator: torch.Generator) -> Tensor:
            return torch.randn((rows, *shape[1:]), generator=generator, device=x.device)

        return distributed.draw_rows(rng, shape[0], draw)

    pairs: tuple[Tensor, ...] = ()  # a GAN's discriminator sees no z
    z_hat = networks.encoder.sample(x, normal) if networks.encoder is not None else ()  # ~ q(z | x)
    z = networks.decoder.sample_prior(len(x), normal)  # ~ p(z)
    x_tilde = networks.decoder(*z)  # ~ p(x | z)
    if z_hat:
        pairs = torch.cat(z_hat, dim=1), torch.cat(z, dim=1)

    # ρ_q = σ(a), ρ_p = σ(b): one pass over both, so that batch norm sees the mixed batch of 2M
    a, b = networks.discriminator.logits((x, x_tilde), pairs, rng).chunk(2)
    loss_d, loss_g = losses(a, b)

    # Both gradients from that one graph, each with respect to its own weights, then both updates
    theta_d, theta_g = _weights(state.optimizer_d), _weights(state.optimizer_g)
    gradients_d = torch.autograd.grad(loss_d, theta_d, retain_graph=True)
    gradients_g = torch.autograd.grad(loss_g, theta_g)
    loss_d, loss_g, *gradients = distributed.all_reduce_mean(
        [loss_d.detach(), loss_g.detach(), *gradients_d, *gradients_g]
    )
    _update(state.optimizer_d, theta_d, gradients[: len(theta_d)])
    _update(state.optimizer_g, theta_g, gradients[len(theta_d) :])
    state.step += 1
    return loss_d, loss_g


def model_step(state: State, x: Tensor, labelled: Labelled | None) -> tuple[Tensor, ...]:
    """One step of a model other than ALI and the GAN: each loss trains its own weights.

    Arguments as those of `Networks.losses`; with several workers, this worker's shards. Returns the
    losses, before the updates, as detached fp32 scalars on the device.
    """
    noise = Noise(distributed.random_source(state.generator, len(x)), x.device)
    losses = state.networks.losses(x, labelled, noise)
    trained: list[tuple[list[Tensor], list[Tensor]]] = []  # of each optimiser: weights, gradients
    for loss, optimizer in zip(losses, state.optimizers, strict=True):
        theta = _weights(optimizer)
        found = torch.autograd.grad(loss, theta, retain_graph=True, allow_unused=True)
        pairs = [(w, g) for w, g in zip(theta, found, strict=True) if g is not None]
        trained.append(([w for w, _ in pairs], [g for _, g in pairs]))
    losses = tuple(distributed.all_reduce_mean([loss.detach().float() for loss in losses]))
    for optimizer, (theta, gradients) in zip(state.optimizers, trained, strict=True):
        gradients = state.networks.limited(distributed.all_reduce_mean(gradients))
        _update(optimizer, theta, gradients)
    state.step += 1
    return losses


def train_epoch(state: State, images: Tensor) -> dict[str, float]:
    """One pass over images, uint8 (N, H, W, 3) on the state's device, in a random order.

    Returns the means of the losses (nats) and images per second. On CUDA the host waits for the
    device only at the end. Raises NonFiniteError for a loss (CPU: at once; CUDA: at the end of the
    epoch, with the step it occurred in) or a weight (at the end), and UserError if the images do
    not fill one batch.
    """
    steps = len(images) // state.config.batch_size
    if steps == 0:
        raise UserError(
            f"{len(images)} training images do not fill a batch of {state.config.batch_size}: "
            "lower --batch-size"
        )
    distributed.check_world_size(state.config.batch_size, distributed.world_size())
    start, first, names = time.perf_counter(), state.step, state.networks.LOSSES
    state.networks.train()
    before = step_graph.constants(state.networks)
    state.networks.begin_epoch(state.epoch, state.config.epochs)
    if step_graph.constants(state.networks) != before:
        state.graph = None
    if state.labelled is not None:
        state.labelled.begin_epoch()
    if images.device.type == "cpu":
        keep_freed_memory()
    step_losses = torch.empty(steps, len(names), device=images.device)  # of each step
    with repeatable():
        for i, x in enumerate(data.batches(images, state.config.batch_size, state.generator)):
            for j, loss in enumerate(_take_step(state, x, first=i < step_graph.WARM_UP)):
                step_losses[i, j] = loss
            if images.device.type == "cpu":  # elsewhere this would wait for the device
                _check(step_losses[i : i + 1], first + i, state)
    _check(step_losses, first, state)
    if broken := non_finite(state):
        raise NonFiniteError(state.step, broken)
    means = dict(zip(names, step_losses.mean(dim=0).tolist(), strict=True))
    state.epoch += 1
    seconds = time.perf_counter() - start
    return means | {IMAGES_PER_SECOND: steps * state.config.batch_size / seconds}


def _take_step(state: State, x: Tensor, first: bool) -> tuple[Tensor, ...]:
    """A step on this worker's rows of x; `first`: one of those before a CUDA graph is captured."""
    inputs: tuple[Tensor, ...] = (distributed.shard(x),)
    if state.labelled is not None:
        labelled = state.labelled.draw(state.config.batch_size, state.generator)
        inputs += tuple(distributed.shard(part) for part in labelled)
    if state.graph is None and (first or not step_graph.captures(state)):
        return _step(state, *inputs)
    if state.graph is None:
        state.graph = StepGraph(state, partial(_step, state), inputs)
    state.step += 1
    return state.graph(*inputs)


def _step(state: State, x: Tensor, *labelled: Tensor) -> tuple[Tensor, ...]:
    if type(state.networks) is ALI:
        return train_step(state, x)
    return model_step(state, x, (labelled[0], labelled[1]) if labelled else None)


def non_finite(state: State) -> tuple[str, ...]:
    """Names of the weights and statistics that hold a NaN or an infinity."""
    named = state.networks.state_dict()
    finite = torch.stack([tensor.isfinite().all() for tensor in named.values()]).tolist()
    return tuple(name for name, fine in zip(named, finite, strict=True) if not fine)


def _check(step_losses: Tensor, first: int, state: State) -> None:
    """Raises NonFiniteError for the first row of `step_losses` that is not finite."""
    bad = ~step_losses.isfinite()
    if bad.any():
        i = int(bad.any(dim=1).nonzero()[0])
        names = state.networks.LOSSES
        what = tuple(n for n, b in zip(names, bad[i].tolist(), strict=True) if b)
        raise NonFiniteError(first + i, what + non_finite(state))


def keep_freed_memory() -> None:
    """Makes glibc's malloc keep freed memory for reuse instead of returning it to the kernel.

    Every step frees and allocates the same hundreds of megabytes; getting them from the kernel
    takes about a tenth of the step. Affects the whole process; does nothing without glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: no separate mapping for blocks below 1 GiB
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: keep the top of the heap
    mallopt(-8, 1)  # M_ARENA_MAX: for other threads too (Ray runs a trial in one)


def repeatable() -> AbstractContextManager[None]:
    """In the block, cuDNN's convolutions give the same bits every time, as exact resuming needs."""
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=cudnn.allow_tf32
    )


def _weights(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _update(optimizer: torch.optim.Adam, weights: list[Tensor], gradients: list[Tensor]) -> None:
    gradients = [  # in memory as the weights are, which fused Adam takes for granted
        g if g.stride() == weight.stride() else torch.empty_like(weight).copy_(g)
        for weight, g in zip(weights, gradients, strict=True)
    ]
    if narrow.updates(optimizer, weights):
        narrow.adam(optimizer, weights, gradients)
        return
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    optimizer.step()
    optimizer.zero_grad()
