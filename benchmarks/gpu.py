"""All that a GPU must answer, in one command of under nine minutes without network: `make gpu`.

    python -m benchmarks.gpu                            into a new folder of runs/gpu
    python -m benchmarks.gpu --only step waits          some of the sections
    python -m benchmarks.gpu --peers papers100 ali-pytorch    beside public codes in these folders

Each section runs in a process of its own with a time limit, so that one which fails or hangs is a
line of the table, and the others go on. Results are written after each section: gpu.json, gpu.html,
gpu.log and pictures. "of peak" is the share of what bf16 matrix products of 8192 × 8192 reach on
the same device in the same run. On a machine without a GPU it runs small, to show that it works.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ali.cli import command, main, parse_args, terminable
from ali.errors import UserError
from ali.files import make_folder
from ali.output import console
from benchmarks.gpu_page import Report, SectionResult
from benchmarks.gpu_rows import WRONG, Outcome, Row, Run, skipped
from benchmarks.gpu_sections import PEAK, SECTIONS

Name = Literal[
    "peak", "step", "waits", "trials", "memory", "evaluation", "resume", "tests", "sweep",
    "training", "compile",
]  # fmt: skip
ROOT = Path(__file__).resolve().parents[1]
LOG = "gpu.log"
# Variables: the sweep is for this machine, and trials are measured without the service, too.
OTHER_PLACES = {"RAY_ADDRESS", "ALI_STORAGE_PATH", "CUDA_MPS_PIPE_DIRECTORY"}
PAST = 5.0  # seconds that a section may take beyond its limit, and to end when it is told to


@dataclass(frozen=True)
class Options:
    """Measure what a GPU does with this project."""

    only: tuple[Name, ...] = ()
    """Sections to run; default: all. The peak is always measured."""
    minutes: float = 8.75
    """Minutes that all of it may take."""
    device: Literal["cuda", "cpu"] | None = None
    """Where to run; default: cuda where there is a GPU."""
    small: bool | None = None
    """Small networks and a few steps, which show that it works and say nothing of speed; default:
    on a CPU."""
    peers: tuple[Path, ...] = ()
    """Folders of public codes to time beside ours (benchmarks/peers.py says which); default:
    none."""
    output_dir: Path | None = None
    """Folder for the results, new or empty; default: a new one in runs/gpu."""

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise UserError(f"--minutes must be above 0, not {self.minutes:g}")
        for folder in self.peers:
            if not folder.is_dir():
                raise UserError(f"--peers: there is no folder {folder}")


def run(options: Options) -> int:
    device, small = _where(options)
    now = datetime.datetime.now().astimezone()
    folder = options.output_dir or Path("runs/gpu") / now.strftime("%Y-%m-%d-%H%M%S")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is in use: choose another --output-dir")
    make_folder(folder)
    called = command("-m", "benchmarks.gpu", *sys.argv[1:])
    report = Report(folder.resolve(), now.isoformat(timespec="seconds"), called, device, small)
    text = console()
    try:
        with terminable():
            for name, result in _sections(options, report):
                report.sections.append(result)
                report.write()
                text.print(f"{name}: {result.summary}", soft_wrap=True)
    except KeyboardInterrupt as stop:
        stop.args = (f"what was measured before is in {folder}",)
        raise
    text.print(f"\n{report.table()}", soft_wrap=True)
    text.print(f"\n{folder / 'gpu.html'}, gpu.json and {LOG} beside it", soft_wrap=True)
    return int(any(row.outcome in WRONG for one in report.sections for row in one.rows))


def _sections(options: Options, report: Report) -> Iterator[tuple[str, SectionResult]]:
    """Runs the sections one after the other; each may take its part of the time left."""
    wanted = [name for name in SECTIONS if name in (PEAK, *(options.only or SECTIONS))]
    deadline = time.monotonic() + 60 * options.minutes
    peers = tuple(folder.resolve() for folder in options.peers)
    with tempfile.TemporaryDirectory(prefix="ali-gpu-", ignore_cleanup_errors=True) as work:
        for i, name in enumerate(wanted):
            weights = [SECTIONS[later].weight for later in wanted[i:]]
            seconds = max(0.0, deadline - time.monotonic()) * weights[0] / sum(weights)
            told = Run(report.device, report.small, seconds, Path(work), report.folder)
            told = replace(told, peak=report.peak, peers=peers)
            yield name, run_section(name, told, report.folder / LOG)


def _where(options: Options) -> tuple[str, bool]:
    """The device, and whether to run small."""
    import torch

    there = torch.cuda.is_available()
    if options.device == "cuda" and not there:
        raise UserError(
            "--device cuda: PyTorch finds no GPU here; leave --device out to see on the CPU that "
            "the command works"
        )
    device = options.device or ("cuda" if there else "cpu")
    return device, device == "cpu" if options.small is None else options.small


def run_section(name: str, run: Run, log: Path) -> SectionResult:
    """Runs a section in a process of its own; what is left of it at its limit is killed."""
    start, section = time.monotonic(), SECTIONS[name]
    if section.needs_cuda and not run.cuda:
        return SectionResult(name, section.about, 0.0, [skipped("all of it")])
    arguments = [sys.executable, "-m", "benchmarks.gpu_sections", name, run.to_json()]
    environment = {name: os.environ[name] for name in os.environ.keys() - OTHER_PLACES}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )  # for scripts, too, where the project is not installed
    if not run.cuda:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # of the commands that it runs, too
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"\n== {name}, at most {run.seconds:.0f} s\n")
        file.flush()
        with _group(arguments, stdout=file, stderr=file, cwd=ROOT, env=environment) as process:
            try:
                code: int | None = process.wait(run.seconds + PAST)
            except subprocess.TimeoutExpired:
                code = None
    rows = [*_rows(name, run, code, log)]
    return SectionResult(name, section.about, time.monotonic() - start, rows)


@contextlib.contextmanager
def _group(arguments: list[str], **others: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended with the block, together with all that it has started.

    They get SIGTERM first, on which a sweep shuts Ray down, and SIGKILL after some seconds.
    """
    process = subprocess.Popen(arguments, start_new_session=True, **others)
    try:
        yield process
    finally:
        deadline = time.monotonic() + PAST
        with contextlib.suppress(ProcessLookupError):  # the group has no process left
            os.killpg(process.pid, signal.SIGTERM)
            while time.monotonic() < deadline:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _rows(name: str, run: Run, code: int | None, log: Path) -> Iterator[Row]:
    """The section's rows, and one more if it failed or reached its limit (`code` is None)."""
    file = run.work / f"{name}.rows"
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        with contextlib.suppress(ValueError):  # half a line of a process that was killed
            yield Row.read(line)
    if code is None:
        note = f"its {run.seconds:.0f} s were over: --minutes gives more"
        yield Row(name, outcome=Outcome.STOPPED, note=note)
    elif code:
        ended = f"signal {-code}" if code < 0 else f"exit code {code}"
        lines = log.read_text(errors="replace", encoding="utf-8").strip().splitlines()
        yield Row(name, outcome=Outcome.FAILED, note=f"{ended}: {lines[-1][:160]}")


if __name__ == "__main__":
    main(lambda: run(parse_args(Options)))
