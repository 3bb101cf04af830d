"""Section `trials`: 1, 2, 4 and 8 trials on one device, each a process with 1/n of it.

As in a sweep with --gpus-per-trial 1/n, the processes share the device by its own time slices.
They start once, build a step, and train for a moment together whenever they are told to.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch

from ali.config import Config
from ali.output import first_line
from ali.training import step as training
from benchmarks.gpu_rows import Outcome, Row, Run, attempt, skipped
from benchmarks.gpu_step import WARM_UP, WAYS, batch, settings
from benchmarks.step import gflop_an_image, train_state

ANSWER = 60.0  # seconds that a process has to build a step


def serve(device_name: str, pipe: Connection) -> None:
    """Builds the step that the pipe names, or takes steps for as many seconds as it says.

    Answers with 10⁹ operations an image, with images a second, or with what went wrong.
    """
    device = torch.device(device_name)
    torch.set_num_threads(1)
    take_step, config = None, Config()
    while message := pipe.recv():
        try:
            if isinstance(message, float):
                assert take_step is not None
                pipe.send(_rate(take_step, message, device) * config.batch_size)
                continue
            (config, way), take_step = message, None
            if device.type == "cuda":
                torch.cuda.empty_cache()
            state = train_state(config, device)
            with training.repeatable():
                take_step = WAYS[way](state, batch(config, device))
                for _ in range(WARM_UP if device.type == "cuda" else 1):
                    take_step()
            pipe.send(gflop_an_image(state.networks))
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {first_line(error)}")


def _rate(take_step: Any, seconds: float, device: torch.device) -> float:
    """Steps a second, all of them done."""
    start, steps = time.perf_counter(), 0
    with training.repeatable():
        while time.perf_counter() - start < seconds:
            take_step()
            steps += 1
            if device.type == "cuda" and steps % 8 == 0:  # not ahead of the device for seconds
                torch.cuda.synchronize()
        if device.type == "cuda":
            torch.cuda.synchronize()
    return steps / (time.perf_counter() - start)


def trials(run: Run) -> Iterator[Row]:
    counts = (1, 2) if run.small else (1, 2, 4, 8)
    paper = settings("svhn", run)
    narrow = paper.replace(width=0.25, batch_size=32)
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(counts[-1]):
        here, there = context.Pipe()
        processes.append(context.Process(target=serve, args=(run.device, there), daemon=True))
        processes[-1].start()
        there.close()  # so that the end of the process ends `recv`
        pipes.append(here)
    for config in (paper,) if run.small else (paper, narrow):
        for way in WAYS:
            what = f"width {Fraction(config.width)}, batch {config.batch_size}, {way}"
            if way != "ours" and not run.cuda:
                yield skipped(what)
                continue
            yield from attempt(what, partial(_side_by_side, run, what, config, way, pipes, counts))
    for pipe in pipes:
        try:
            pipe.send(None)
        except OSError:  # a process that is gone
            continue
    for process in processes:
        process.join(5)
        process.kill()


def _side_by_side(
    run: Run, what: str, config: Config, way: str, pipes: list[Connection], counts: tuple[int, ...]
) -> Iterator[Row]:
    for pipe in pipes:
        pipe.send((config, way))
    built = [_answer(pipe) for pipe in pipes]
    ready = [pipe for pipe, one in zip(pipes, built, strict=True) if isinstance(one, float)]
    wrong = [one for one in built if isinstance(one, str)]
    alone = 0.0
    for count in counts:
        share = f"{count} × {Fraction(1, count)} GPU" if run.cuda else f"{count} at a time"
        shown = f"{share}, {what}"
        if count > len(ready):
            yield Row(shown, outcome=Outcome.FAILED, note=wrong[0])
            continue
        for pipe in ready[:count]:
            pipe.send(0.2 if run.small else 1.5)
        rates = [_answer(pipe) for pipe in ready[:count]]
        if failed := [one for one in rates if isinstance(one, str)]:
            yield Row(shown, outcome=Outcome.FAILED, note=failed[0])
            continue
        rate = sum(rates)
        alone = alone or rate
        note = f"{rate / alone:.2f} × one alone; {rate / count:,.0f} each"
        gflop = next(one for one in built if isinstance(one, float))
        yield Row(shown, rate, "images/s", run.share(rate, gflop), note=note)


def _answer(pipe: Connection) -> Any:
    if not pipe.poll(ANSWER):
        return f"no answer in {ANSWER:.0f} s"
    try:
        return pipe.recv()
    except EOFError:
        return "its process ended"
