"""Training steps as CUDA graphs: all kernels of a step are launched by one call of the host.

A step is several hundred kernels. A GPU is through with most of them sooner than Python has
launched the next; replayed as a graph, they follow one another without the host. Kernels, their
order and their random numbers are those of the step as it was captured, and so are the bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ali import distributed, environment
from ali.models.base import Networks
from ali.output import first_line

if TYPE_CHECKING:
    from ali.training.state import State

TakeStep = Callable[..., tuple[Tensor, ...]]
WARM_UP = 2  # steps of a process before one is captured: they set up cuDNN, cuBLAS and Adam


class StepGraph:
    """A step of training, captured on the state's device; called, it takes it on other inputs.

    It does not count the step. It holds no reference to the state, which holds it: the device's
    memory is free as soon as both are.

    Args:
        take_step: takes a step on tensors of the shapes of `inputs`, as it has before.
    """

    def __init__(self, state: State, take_step: TakeStep, inputs: tuple[Tensor, ...]) -> None:
        self._inputs, self._device = [x.clone() for x in inputs], state.device
        for optimizer in state.optimizers:
            for group in optimizer.param_groups:
                group["capturable"] = True  # fused Adam's step count is on the device as it is
        self._graph, taken = torch.cuda.CUDAGraph(), state.step
        self._graph.register_generator_state(state.generator)
        with torch.cuda.device(self._device):
            try:
                # thread_local: other threads, Ray's and MLflow's, may use the device meanwhile
                with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                    self._losses = take_step(*self._inputs)
            except BaseException as error:
                _release(torch.cuda.default_generators[torch.cuda.current_device()])
                if (cause := _cause(error)) is error:
                    raise
                raise cause from error
        state.step = taken  # captured, not taken

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The losses of a step; the next one overwrites them."""
        for captured, x in zip(self._inputs, inputs, strict=True):
            captured.copy_(x)
        with torch.cuda.device(self._device):
            self._graph.replay()
        return self._losses


def _release(generator: torch.Generator) -> None:
    """Makes PyTorch's own generator usable in this process again, after a capture has failed."""
    generator.graphsafe_set_state(torch.Generator(generator.device).graphsafe_get_state())


def _cause(error: BaseException) -> BaseException:
    """What is wrong: that memory was short, or that the step cannot be captured."""
    first: BaseException | None = error
    while first is not None:
        if isinstance(first, torch.cuda.OutOfMemoryError):
            return first
        first = first.__context__
    if not isinstance(error, RuntimeError) or (
        isinstance(error, torch.AcceleratorError) and "captur" not in str(error)
    ):
        return error
    return RuntimeError(
        "the training step cannot be captured as a CUDA graph (start again with ALI_CUDA_GRAPHS=0, "
        f"which trains without, more slowly): {first_line(error)}"
    )


def captures(state: State) -> bool:
    """Whether the state's steps are captured: on CUDA, by a worker that is alone."""
    alone = distributed.world_size() == 1
    return state.device.type == "cuda" and alone and environment.cuda_graphs()


def constants(networks: Networks) -> dict[str, float]:
    """What a captured step has of the networks' settings: numbers that `begin_epoch` may change."""
    return {name: x for name, x in vars(networks).items() if isinstance(x, int | float)}
