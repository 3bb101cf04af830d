"""Section `trials`: 1, 2, 4 and 8 trials on one device, each a process with 1/n of it.

As in a sweep with --gpus-per-trial 1/n, the processes compute at the same time where the device's
Multi-Process Service can be had (sweeps/engine/gpus.py); otherwise they take turns, which is
measured, too. They start once, build a step, and train for a moment together whenever they are told
to.
"""

from __future__ import annotations

import contextlib
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
from benchmarks.gpu_rows import Outcome, Row, Run, attempt, goal, skipped
from benchmarks.gpu_step import WARM_UP, WAYS, batch, settings
from benchmarks.step import gflop_an_image, train_state
from sweeps.engine import gpus

ANSWER = 60.0  # seconds that a process has to build a step
TURN, SMALL_TURN = 1.5, 0.2  # seconds of training


def serve(device_name: str, pipe: Connection, by_mps: bool) -> None:
    """Answers numbered requests: builds a step, or takes steps for so many seconds.

    The answers are 10⁹ operations an image, images a second, or a text that says what went wrong.
    """
    device = torch.device(device_name)
    torch.set_num_threads(1)
    joined = by_mps and gpus.join(0.5)
    take_step, config = None, Config()
    while message := pipe.recv():
        number, request = message
        try:
            if isinstance(request, float):
                assert take_step is not None
                pipe.send((number, _rate(take_step, request, device) * config.batch_size))
                continue
            if by_mps and not joined:
                raise RuntimeError("no Multi-Process Service works here")
            (config, way), take_step = request, None
            if device.type == "cuda":
                torch.cuda.empty_cache()
            state = train_state(config, device)
            with training.repeatable():
                take_step = WAYS[way](state, batch(config, device))
                for _ in range(WARM_UP if device.type == "cuda" else 1):
                    take_step()
            pipe.send((number, gflop_an_image(state.networks)))
        except Exception as error:
            pipe.send((number, f"{type(error).__name__}: {first_line(error)}"))


class Trial:
    """A process that trains when it is told to."""

    def __init__(self, device: str, by_mps: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        arguments = (device, there, by_mps)
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        there.close()  # so that the end of the process ends `recv`
        self._asked = 0

    def ask(self, request: float | tuple[Config, str]) -> None:
        self._asked += 1
        with contextlib.suppress(OSError):  # it has ended: `answer` says so
            self._pipe.send((self._asked, request))

    def answer(self) -> float | str:
        """The answer to the last request; a text if something went wrong."""
        try:
            while self._pipe.poll(ANSWER):
                number, answer = self._pipe.recv()
                if number == self._asked:  # not one that came too late
                    return answer
        except (EOFError, ConnectionError):
            return "its process ended"
        return f"no answer in {ANSWER:.0f} s"

    def end(self) -> None:
        self._process.kill()
        self._process.join()


def _rate(take_step: Any, seconds: float, device: torch.device) -> float:
    """Steps per second, counted when the device has done them."""
    start, steps = time.perf_counter(), 0
    with training.repeatable():
        while time.perf_counter() - start < seconds:
            take_step()
            steps += 1
            if device.type == "cuda" and steps % 8 == 0:  # to stay near the device
                torch.cuda.synchronize()
        if device.type == "cuda":
            torch.cuda.synchronize()
    return steps / (time.perf_counter() - start)


def trials(run: Run) -> Iterator[Row]:
    yield from _all(run, (1, 2) if run.small else (1, 4), by_mps=False)
    if not run.cuda:
        yield skipped("the Multi-Process Service, CUDA graphs")
        return
    yield from _all(run, (1, 2, 4, 8), by_mps=True)


def _all(run: Run, counts: tuple[int, ...], by_mps: bool) -> Iterator[Row]:
    """Side by side, at two widths; at last without one of them, which is killed."""
    paper = settings("svhn", run)
    narrow = paper.replace(width=0.25, batch_size=32)
    shared = "MPS, " * by_mps
    way = "ours, CUDA graph" if run.cuda else "ours"  # as an epoch is trained
    started = [Trial(run.device, by_mps) for _ in range(counts[-1])]
    for config in (paper,) if run.small else (paper, narrow):
        what = f"{shared}width {Fraction(config.width)}, batch {config.batch_size}"
        measure = partial(_side_by_side, run, what, (config, way), started, counts)
        yield from attempt(what, measure)
    if by_mps:
        yield from attempt("one is killed", partial(_killed, started))
    for trial in started:
        trial.end()


def _killed(trials: list[Trial]) -> Row:
    """Kills a process in the middle of its steps: those beside it should go on."""
    for trial in trials:
        trial.ask(TURN)
    time.sleep(TURN / 2)
    trials[0].end()
    _, *others = [trial.answer() for trial in trials]
    wrong = [answer for answer in (*others, *_ask(trials[1:], TURN)) if isinstance(answer, str)]
    return goal("one is killed with -9, the others go on", not wrong, note="".join(wrong[:1]))


def _side_by_side(
    run: Run, what: str, built: tuple[Config, str], trials: list[Trial], counts: tuple[int, ...]
) -> Iterator[Row]:
    answers = _ask(trials, built)
    ready = [one for one, answer in zip(trials, answers, strict=True) if isinstance(answer, float)]
    alone = 0.0
    for count in counts:
        share = f"{count} × {Fraction(1, count)} GPU" if run.cuda else f"{count} at a time"
        asked = ready[:count], SMALL_TURN if run.small else TURN
        rates = _ask(*asked) if count <= len(ready) else answers
        if wrong := [answer for answer in rates if isinstance(answer, str)]:
            yield Row(f"{share}, {what}", outcome=Outcome.FAILED, note=wrong[0])
            continue
        rate = sum(map(float, rates))
        alone = alone or rate
        gflop = next(answer for answer in answers if isinstance(answer, float))
        note = f"{rate / alone:.2f} × one alone; {rate / count:,.0f} each"
        yield Row(f"{share}, {what}", rate, "images/s", run.share(rate, gflop), note=note)


def _ask(trials: list[Trial], request: float | tuple[Config, str]) -> list[float | str]:
    """Sends all of them the request, then collects the answers."""
    for trial in trials:
        trial.ask(request)
    return [trial.answer() for trial in trials]
