"""Sections `step` and `compile`: a step of Tables 2 to 5 in several ways, beside others' code.

A way turns a State and a batch into a function for one step of `ali.training.step.train_step`:

- `eager` calls it, as `train_epoch` does on a CPU.
- `compiled` gives all its arithmetic, from the networks to both gradients, to torch.compile as one
  graph. Random numbers are drawn before it, in the same order, and Adam follows it: torch.compile
  takes neither a generator nor autograd.grad.
- `captured` replays the kernels of either as one CUDA graph, as `train_epoch` does on a GPU.

All of them train on the same random numbers, and differ by rounding at most.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ali import distributed
from ali.config import Config
from ali.models.precision import compute_dtype
from ali.models.tables import paper_table
from ali.training import step as training
from ali.training.state import State
from ali.training.step_graph import StepGraph
from benchmarks import peers
from benchmarks.gpu_rows import Row, Run, attempt, skipped
from benchmarks.peers import replaced
from benchmarks.step import gflop_an_image, plain_step, seconds_a_step, train_state

TakeStep = Callable[[], Any]
Way = Callable[[State, Tensor], TakeStep]
TABLES = {"svhn": 3, "cifar10": 2, "celeba": 4, "tiny-imagenet": 5}  # whose table it is
WARM_UP = 4  # steps: what the first ones set up is not measured
TURNS, TURN_SECONDS = 5, 0.15
COMPILING = 25.0  # seconds that are left before torch.compile begins, at least


def eager(state: State, x: Tensor) -> TakeStep:
    return partial(training.train_step, state, x)


def captured(state: State, take_step: Callable[[Tensor], Any], x: Tensor) -> TakeStep:
    """`take_step` as a CUDA graph, after a few steps to warm up."""
    for _ in range(WARM_UP):
        take_step(x)
    graph = StepGraph(state, take_step, (x,))

    def replay() -> Any:
        state.step += 1
        return graph(x)

    return replay


def compiled(state: State, x: Tensor) -> Callable[[Tensor], Any]:
    """`train_step` with torch.compile, after one step that records its draws."""
    drawn: list[tuple[int, Callable[[int, torch.Generator], Tensor]]] = []
    draw_rows = distributed.draw_rows

    def recorded(source: Any, rows: int, draw: Any) -> Tensor:
        drawn.append((rows, draw))
        return draw_rows(source, rows, draw)

    with replaced(distributed, "draw_rows", recorded):
        training.train_step(state, x)

    def draws() -> list[Tensor]:
        return [draw(rows, state.generator) for rows, draw in drawn]

    def gradients(x: Tensor, noise: list[Tensor]) -> list[Tensor]:
        """Losses, and gradients of D's weights and then of G's; batch norm's statistics follow."""
        found: list[Tensor] = []
        rest = iter(noise)
        given = replaced(distributed, "draw_rows", lambda *_: next(rest))
        with given, replaced(training, "_update", lambda _, __, g: found.extend(g)):
            return [*training.train_step(state, x), *found]

    graph = torch.compile(_traced(state, gradients, x, draws), fullgraph=True)
    theta = [training._weights(optimizer) for optimizer in state.optimizers]

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():  # the gradients are among its results
            loss_d, loss_g, *found = graph(x, draws())
        for optimizer, weights in zip((state.optimizer_d, state.optimizer_g), theta, strict=True):
            training._update(optimizer, weights, found[: len(weights)])
            found = found[len(weights) :]
        state.step += 1
        return loss_d, loss_g

    return step


def _traced(state: State, function: Any, x: Tensor, draws: Callable[[], list[Tensor]]) -> Any:
    """The operations of `function`, recorded in one run, after which the state is restored."""
    from torch.fx.experimental.proxy_tensor import make_fx

    statistics = {name: one.clone() for name, one in state.networks.named_buffers()}
    random, taken = state.generator.get_state(), state.step
    with replaced(F, "batch_norm", _batch_norm):
        graph = make_fx(function)(x, draws())
    with torch.no_grad():
        for name, one in state.networks.named_buffers():
            one.copy_(statistics[name])
    state.generator.set_state(random)
    state.step = taken
    return graph


def _batch_norm(h: Tensor, mean: Tensor, var: Tensor, *others: Any) -> Tensor:
    """F.batch_norm by PyTorch's own operation: torch.compile does not see that cuDNN's, which is
    chosen on CUDA, changes the running statistics."""
    gamma, beta, *rest = others
    return torch.native_batch_norm(h, gamma, beta, mean, var, *rest)[0]


WAYS: dict[str, Way] = {  # all but the first need CUDA
    "ours": eager,
    "ours, CUDA graph": lambda state, x: captured(state, partial(training.train_step, state), x),
}


def batch(config: Config, device: torch.device) -> Tensor:
    x = torch.rand(config.batch_size, *paper_table(config).image, device=device)
    return x.contiguous(memory_format=torch.channels_last)


def settings(data: Any, run: Run) -> Config:
    """The paper's width and batch of a data set's table; small: what a CPU does quickly."""
    config = Config(data=data)
    return config.replace(width=0.0625, batch_size=8) if run.small else config


def timed(take_step: TakeStep, device: torch.device, small: bool) -> float:
    """Seconds a step: the median over turns, each of as many steps as fit in a moment."""
    seconds_a_step(take_step, 1 if small else WARM_UP, device)
    once = seconds_a_step(take_step, 1, device)
    steps = 1 if small else max(1, min(50, round(TURN_SECONDS / once)))
    turns = 1 if small else TURNS
    return statistics.median(seconds_a_step(take_step, steps, device) for _ in range(turns))


def step(run: Run) -> Iterator[Row]:
    """Ours, as it is and as a CUDA graph; plain PyTorch's; for Table 3 those of public codes."""
    for data, number in TABLES.items():
        yield from _of_table(run, settings(data, run), f"Table {number}")
    if run.cuda:
        yield from same_numbers(run)
    else:
        yield skipped("CUDA graphs")


def compile(run: Run) -> Iterator[Row]:
    """torch.compile is slow for each table: the last ones may be skipped."""
    end = time.monotonic() + run.seconds
    for data, number in TABLES.items():
        what = f"Table {number}: ours, torch.compile"
        if time.monotonic() + COMPILING > end:
            yield skipped(what, "no time was left: --minutes gives more")
        else:
            yield from attempt(what, partial(_compiled, run, what, settings(data, run)))
            torch.cuda.empty_cache()


def _compiled(run: Run, what: str, config: Config) -> Iterator[Row]:
    x, state = batch(config, torch.device(run.device)), _state(run, config)
    with training.repeatable():
        start = time.perf_counter()
        take_step = compiled(state, x)
        take_step(x)
        note = f"compiled in {time.perf_counter() - start:.0f} s"
        yield _timed(run, what, state, x, partial(take_step, x), note)
        yield _timed(run, f"{what}, CUDA graph", state, x, captured(state, take_step, x))


def _of_table(run: Run, config: Config, table: str) -> Iterator[Row]:
    device = torch.device(run.device)
    for name, way in WAYS.items():
        if run.cuda or way is eager:
            yield from _row(run, f"{table}: {name}", config, way)
    others: dict[str, Way] = {}
    if compute_dtype("auto", device) == torch.bfloat16:
        others["plain PyTorch, bf16 autocast"] = lambda _, x: plain_step(config, x, autocast=True)
    others["plain PyTorch, fp32"] = lambda _, x: plain_step(config, x, autocast=False)
    if config.data == "svhn" and (run.small or not run.peers):
        why = (
            "needs the paper's width: --small False"
            if run.peers
            else "needs their folders: --peers"
        )
        yield skipped(f"{table}: public codes", why)
    for folder in run.peers if config.data == "svhn" and not run.small else ():
        others[f"{folder.resolve().name}, fp32"] = partial(_peer, folder)
    for name, way in others.items():  # with cuDNN's settings as PyTorch has them: TF32 in fp32
        yield from _row(run, f"{table}: {name}", config, way, contextlib.nullcontext)


def _peer(folder: Path, _: State, x: Tensor) -> TakeStep:
    return peers.load(folder.resolve(), len(x), x.device)


def _row(
    run: Run,
    what: str,
    config: Config,
    way: Way,
    within: Callable[[], AbstractContextManager[Any]] = training.repeatable,  # as in an epoch
) -> Iterator[Row]:
    def measure() -> Row:
        x, state = batch(config, torch.device(run.device)), _state(run, config)
        with within():
            return _timed(run, what, state, x, way(state, x))

    yield from attempt(what, measure)
    if run.cuda:
        torch.cuda.empty_cache()


def _state(run: Run, config: Config) -> State:
    return train_state(config, torch.device(run.device))


def _timed(
    run: Run, what: str, state: State, x: Tensor, take_step: TakeStep, note: str = ""
) -> Row:
    took = timed(take_step, x.device, run.small)
    rate, gflop = len(x) / took, gflop_an_image(state.networks)
    note = "; ".join([f"{took * 1e3:.2f} ms a step of {len(x)}", *filter(None, [note])])
    details = {"gflop_an_image": gflop}
    return Row(what, rate, "images/s", run.share(rate, gflop), note=note, details=details)


def same_numbers(run: Run, steps: int = 5) -> Iterator[Row]:
    """Whether a CUDA graph trains like eager steps: the largest weight difference after `steps`."""
    what = "Table 3: weights by CUDA graph less eager's"

    def measure() -> Row:
        config, device = settings("svhn", run), torch.device(run.device)
        x, one, other = batch(config, device), *(train_state(config, device) for _ in range(2))
        with training.repeatable():
            replay = WAYS["ours, CUDA graph"](other, x)
            for _ in range(steps):
                replay()
            for _ in range(WARM_UP + steps):
                training.train_step(one, x)
        worst = difference(one, other)
        told = "the same bits" if worst == 0 else "they differ"
        return Row(what, worst, note=f"{told} after {steps} replays")

    yield from attempt(what, measure)


def difference(one: State, other: State) -> float:
    """The largest difference of a weight or statistic."""
    pairs = zip(
        one.networks.state_dict().values(), other.networks.state_dict().values(), strict=True
    )
    return max(float((a - b).abs().max()) for a, b in pairs)
