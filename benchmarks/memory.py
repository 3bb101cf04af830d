"""What the data set costs: memory of 1, 2 and 4 trials on a node, the first start, batching.

    python benchmarks/memory.py [--train-size 73257]

Each trial is a process that maps the decoded cache and goes through one epoch of batches, as
training does. "shared" counts the cache once, however many processes map it (the proportional set
size of its mapping, summed); "own" is what the processes hold beside it, private memory and their
share of libraries. Batching is timed beside a training step of the quarter-width model.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
import warnings
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import torch

from ali import data
from ali.cli import main
from ali.cli.common import check_at_least
from ali.config import Config
from ali.training import step as training
from ali.training.state import State


def trial(config: Config, ready: Barrier, done: Barrier) -> None:
    torch.set_num_threads(1)
    dataset = data.load(config)
    generator = torch.Generator().manual_seed(0)
    for _ in data.batches(_images(dataset), config.batch_size, generator):
        pass
    ready.wait()
    done.wait()


def _images(dataset: data.Dataset) -> torch.Tensor:
    with warnings.catch_warnings():  # the images are mapped read-only, and only read
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(dataset.train.x)


def proportional(pid: int, cache: str) -> tuple[float, float]:
    """MiB of a process in files of the cache, and in all else, each page divided by its users."""
    found, here = {True: 0, False: 0}, False
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
        first = line.split(maxsplit=1)[0]
        if "-" in first and not first.endswith(":"):
            here = cache in line
        elif first == "Pss:":
            found[here] += int(line.split()[1])
    return found[True] / 1024, found[False] / 1024


def command() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--train-size", type=int, default=73_257, help="images; SVHN's own: 73257")
    options = parser.parse_args()
    check_at_least(1, train_size=options.train_size)
    torch.set_num_threads(1)
    config = Config(train_size=options.train_size, width=0.25, precision="fp32")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ALI_CACHE"] = folder
        for what in ("first", "second"):
            start = time.perf_counter()
            dataset = data.load(config)
            print(f"{what} start: data ready after {time.perf_counter() - start:.2f} s")
        print(f"{len(dataset.train):,} images, {dataset.train.x.nbytes / 2**20:.0f} MiB\n")

        print(f"{'trials':>6} {'shared MiB':>11} {'own MiB, each':>14}")
        context = multiprocessing.get_context("spawn")
        for count in (1, 2, 4):
            ready, done = context.Barrier(count + 1), context.Barrier(count + 1)
            trials = [
                context.Process(target=trial, args=(config, ready, done)) for _ in range(count)
            ]
            for process in trials:
                process.start()
            ready.wait()
            found = np.array([proportional(process.pid or 0, folder) for process in trials])
            done.wait()
            for process in trials:
                process.join()
            print(f"{count:6} {found[:, 0].sum():11.0f} {found[:, 1].mean():14.0f}")

        images, generator = _images(dataset), torch.Generator().manual_seed(0)
        start, steps = time.perf_counter(), 0
        for batch in data.batches(images, config.batch_size, generator):
            x, steps = batch, steps + 1
        batching = (time.perf_counter() - start) / steps
        state = State.create(config, dataset.train, "cpu")
        state.networks.train()
        training.keep_freed_memory()
        took = []
        for _ in range(8):
            start = time.perf_counter()
            training.train_step(state, x)
            took.append(time.perf_counter() - start)
        step = float(np.median(took))
        print(
            f"\na batch of {config.batch_size}: {1e3 * batching:.2f} ms, a step at width 0.25 "
            f"{1e3 * step:.0f} ms: {batching / (batching + step):.2%}"
        )


if __name__ == "__main__":
    main(command)
