"""Several trials on a node: do n trials of one core each train as much as one that has them all?

    python benchmarks/trials.py [--trials 2] [--width 0.25] [--batch-size 32]

The sides take turns: n processes of one thread each, which start their steps together, and one
process with 1 … n threads, the best of which counts. Images per second, medians over the turns.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection

import torch
from step import our_step

from ali.cli import main
from ali.cli.common import check_at_least
from ali.config import Config
from ali.models.tables import paper_table
from ali.training import step as training


def serve(config: Config, threads: int, pipe: Connection) -> None:
    """Trains for as many seconds as the pipe asks for, and answers with images per second."""
    torch.set_num_threads(threads)
    training.keep_freed_memory()
    step = our_step(config, torch.rand(config.batch_size, *paper_table(config).image))
    step()
    pipe.send(0.0)
    while seconds := pipe.recv():
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            step()
            steps += 1
        pipe.send(steps * config.batch_size / (time.perf_counter() - start))


def command() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trials", type=int, default=2, help="at a time, one core each")
    parser.add_argument("--width", type=float, default=0.25, help="multiplier of the feature maps")
    parser.add_argument("--batch-size", type=int, default=32, help="images a step")
    parser.add_argument("--turns", type=int, default=5, help="times each side is measured")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a turn of one side")
    options = parser.parse_args()
    check_at_least(1, trials=options.trials, batch_size=options.batch_size, turns=options.turns)
    config = Config(width=options.width, batch_size=options.batch_size)
    context = multiprocessing.get_context("spawn")
    sides: dict[str, list[Connection]] = {}
    wanted = [("together", 1)] * options.trials
    wanted += [(f"one, {n} threads", n) for n in range(1, options.trials + 1)]
    processes = []
    for side, threads in wanted:
        here, there = context.Pipe()
        processes.append(context.Process(target=serve, args=(config, threads, there)))
        processes[-1].start()
        here.recv()
        sides.setdefault(side, []).append(here)
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(options.turns):
        for side, pipes in sides.items():
            for pipe in pipes:
                pipe.send(options.seconds)
            rates[side].append(sum(pipe.recv() for pipe in pipes))
    for pipes in sides.values():
        for pipe in pipes:
            pipe.send(0.0)
    for process in processes:
        process.join()
    found = {side: statistics.median(rate) for side, rate in rates.items()}
    best = max(rate for side, rate in found.items() if side != "together")
    print(f"width {options.width:g}, batch {options.batch_size}, {config.precision} precision")
    for side, rate in found.items():
        name = f"{options.trials} trials of 1 thread" if side == "together" else side
        print(f"{name:28} {rate:8.1f} images/s {rate / best:8.1%} of the best")


if __name__ == "__main__":
    main(command)
