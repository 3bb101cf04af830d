"""The sections of `benchmarks.gpu`, each of which runs in a process of its own:

    python -m benchmarks.gpu_sections NAME RUN     RUN: a Run as JSON

Rows go to NAME.rows in the run's working folder as they are measured, so that a process that is
killed leaves what it had.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ali.files import append_line
from benchmarks.gpu_rows import Row, Run, attempt


@dataclass(frozen=True)
class Section:
    """A part of the measurements.

    Attributes:
        about: what is measured, in a line.
        module: contains its function, named as the section; imported only in its own process.
        weight: its part of the time; later sections get what it leaves.
        needs_cuda: all of it; otherwise some of it runs on a CPU, too.
    """

    about: str
    module: str
    weight: float
    needs_cuda: bool = False


PEAK = "peak"
SECTIONS = {  # in this order: what is measured first is there if the machine is taken away
    PEAK: Section("the device, and its fastest matrix products", "gpu_device", 9),
    "step": Section("a training step, ours, plain PyTorch's and the peers'", "gpu_step", 48),
    "waits": Section(
        "times the host waits for the device in an epoch", "gpu_device", 24, needs_cuda=True
    ),
    "trials": Section("trials side by side on one device, a process each", "gpu_trials", 70),
    "memory": Section("what a trial takes of the device", "gpu_device", 10, needs_cuda=True),
    "evaluation": Section("val_error, sample measures and data", "gpu_device", 22),
    "resume": Section("a training that is killed and resumed", "gpu_runs", 28),
    "tests": Section("the tests that only a GPU can run", "gpu_runs", 45, needs_cuda=True),
    "sweep": Section("a whole small sweep", "gpu_runs", 55),
    "training": Section("house numbers at the paper's settings", "gpu_runs", 165),
    "compile": Section("the training step with torch.compile", "gpu_step", 55, needs_cuda=True),
}


def rows(name: str, run: Run) -> Iterator[Row]:
    """The rows of a section; the last one says why if it fails."""

    def measure() -> Iterator[Row]:
        module = importlib.import_module(f"benchmarks.{SECTIONS[name].module}")
        function: Callable[[Run], Iterator[Row]] = getattr(module, name)
        return function(run)

    return attempt(name, measure)


def main(name: str, text: str) -> None:
    start, run = time.monotonic(), Run.from_json(text)
    import torch  # the seconds of its import are part of the section's

    if run.small:
        torch.set_num_threads(1)
    for row in rows(name, replace(run, seconds=run.seconds - (time.monotonic() - start))):
        append_line(run.work / f"{name}.rows", row.line())


if __name__ == "__main__":
    main(*sys.argv[1:])
