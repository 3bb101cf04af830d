"""Sections `peak`, `waits`, `memory` and `evaluation`: measured on the device in one process."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ali import data
from ali.config import Config
from ali.evaluation import protocol, quality
from ali.models.inference import chunks, evaluating
from ali.models.memory import gpu_memory
from ali.models.precision import compute_dtype
from ali.models.tables import paper_table
from ali.training import step as training
from ali.training.state import State
from benchmarks.gpu_rows import Row, Run, attempt, goal, skipped
from benchmarks.gpu_step import TABLES, settings
from benchmarks.step import gflop_an_image, peak_gflops, train_state

T = TypeVar("T")
WARM_UP, TURNS = 20, 7  # matrix products: the clock rises with the first ones
STEPS = 8  # of an epoch; one of twice as many ends in the same way
SYNCHRONISES = (
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "cudaMemcpy",
)
SLOWEST = 12  # kernels of an epoch that the JSON file names
EPOCH = 63_257  # images of an epoch of SVHN that evaluation is compared with
HOUSE_NUMBERS = Config()  # at the paper's settings


def house_numbers(run: Run) -> Config:
    """What is trained and evaluated: at the paper's settings, or small."""
    small = {"width": 0.0625, "batch_size": 20, "train_size": 200, "labels": 50, "draws": 1}
    return HOUSE_NUMBERS.replace(**small) if run.small else HOUSE_NUMBERS


def seconds(work: Callable[[], T], device: torch.device) -> tuple[float, T]:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


# The device ----------------------------------------------------------------------------------


def peak(run: Run) -> Iterator[Row]:
    """A row's details describe the machine; shares of the peak are of its bf16 TFLOP/s."""
    device, name = torch.device(run.device), _processor()
    about = {"torch": torch.__version__, "python": platform.python_version()}
    cores = len(os.sched_getaffinity(0))
    if run.cuda:
        found = torch.cuda.get_device_properties(0)
        name = found.name
        about |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
        about |= {"capability": f"{found.major}.{found.minor}"}
        yield Row("memory", found.total_memory / 2**30, "GiB", note=f"{name}, {cores} CPU cores")
    yield Row("CPU cores", cores, details=about | {"device": name, "cores": cores})
    for dtype in (torch.bfloat16, torch.float32):
        what = f"matrix product, {str(dtype).removeprefix('torch.')}"
        yield from attempt(what, partial(_peak, what, device, dtype))
    if run.cuda:
        yield from attempt("copy within the device's memory", partial(_copy, device))
    else:
        yield skipped("copy within the device's memory")


def _processor() -> str:
    """The CPU's name, if Linux reports it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _peak(what: str, device: torch.device, dtype: torch.dtype) -> Row:
    for _ in range(WARM_UP if device.type == "cuda" else 1):
        peak_gflops(device, dtype)
    found = statistics.median(peak_gflops(device, dtype) for _ in range(TURNS))
    return Row(what, found / 1e3, "TFLOP/s")


def _copy(device: torch.device, size: int = 2**31) -> Row:
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    took = statistics.median(seconds(lambda: target.copy_(source), device)[0] for _ in range(TURNS))
    return Row(
        "copy within the device's memory", 2 * size / took / 1e9, "GB/s", note="read + written"
    )


# Waits ---------------------------------------------------------------------------------------


def waits(run: Run) -> Iterator[Row]:
    """Epochs of n and of 2n steps: the difference is due to steps, the rest to an epoch's end."""
    for data_name in TABLES:
        config = settings(data_name, run)
        what = f"Table {TABLES[data_name]}: waits of a step"
        yield from attempt(what, partial(_waits, run, what, config))
        torch.cuda.empty_cache()


def _waits(run: Run, what: str, config: Config) -> Iterator[Row]:
    device = torch.device(run.device)
    state = train_state(config, device)

    def epoch(steps: int) -> Callable[[], object]:
        images = _images(config, steps, device)
        return lambda: training.train_epoch(state, images)

    epoch(STEPS)()
    _warnings(epoch(STEPS))  # the first time it may wait once more
    few, many = (_warnings(epoch(steps)) for steps in (STEPS, 2 * STEPS))
    if few == 0:
        raise RuntimeError("PyTorch did not even warn of the waits at the end of an epoch")
    each = (many - few) / STEPS
    note = f"{few - each * STEPS:g} at the end of an epoch, by PyTorch's sync debug mode"
    yield goal(what, each == 0, each, note=note)

    took = seconds(epoch(4 * STEPS), device)[0] / (4 * STEPS)
    one, two = (_profile(epoch(steps)) for steps in (STEPS, 2 * STEPS))
    if not one.waits or not one.kernels:
        raise RuntimeError("the profiler recorded no calls of CUDA")
    each = (two.waits - one.waits) / STEPS
    yield goal(f"{what}, by the profiler", each == 0, each, note="calls of CUDA that wait")
    busy = 100 * (two.busy - one.busy) / STEPS / took
    note = f"{(two.kernels - one.kernels) / STEPS:.0f} kernels and {1e3 * took:.2f} ms a step"
    details = {"slowest": two.slowest}
    what = f"{what.split(':')[0]}: device busy in an epoch"
    yield Row(what, busy, "%", note=note, details=details)


def _images(config: Config, steps: int, device: torch.device) -> Tensor:
    maps, height, width = paper_table(config).image
    shape = (steps * config.batch_size, height, width, maps)
    return torch.randint(0, 256, shape, dtype=torch.uint8, device=device)


def _warnings(work: Callable[[], object]) -> int:
    """Times PyTorch warns that an operation synchronises."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(one.message) for one in caught)


class Profile(NamedTuple):
    waits: int  # calls of CUDA that wait for the device
    kernels: int  # and copies
    busy: float  # seconds that these take
    slowest: list[tuple[str, int, float]]  # kernels: name, how many, and their part of `busy`


def _profile(work: Callable[[], object]) -> Profile:
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        work()
        torch.cuda.synchronize()
    found = recorded.key_averages()
    on_device = [
        one
        for one in found
        if one.device_type == DeviceType.CUDA and not getattr(one, "is_user_annotation", False)
    ]
    waits = sum(one.count for one in found if one.key in SYNCHRONISES)
    busy = sum(one.self_device_time_total for one in on_device) / 1e6
    first = sorted(on_device, key=lambda one: -one.self_device_time_total)[:SLOWEST]
    slowest = [(k.key[:100], k.count, k.self_device_time_total / 1e6 / busy) for k in first]
    return Profile(waits, sum(one.count for one in on_device), busy, slowest)


# Memory --------------------------------------------------------------------------------------


def memory(run: Run) -> Iterator[Row]:
    """What a trial's process takes: its tensors, as reserved by PyTorch, and CUDA's context."""
    trials = {f"Table {number}": settings(name, run) for name, number in TABLES.items()}
    narrow = settings("svhn", run).replace(width=0.25, batch_size=32)
    for what, config in (trials | {"Table 3, width 1/4, batch 32": narrow}).items():
        yield from attempt(what, partial(_memory, run, what, config))


def _memory(run: Run, what: str, config: Config) -> Row:
    device = torch.device(run.device)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    state = train_state(config, device)
    training.train_epoch(state, _images(config, 3, device))
    reserved = torch.cuda.max_memory_reserved() / 2**30
    free, total = (size / 2**30 for size in torch.cuda.mem_get_info())
    context = max(0.0, total - free - torch.cuda.memory_reserved() / 2**30)
    fit = int(total / (reserved + context))
    allocated = torch.cuda.max_memory_allocated() / 2**30
    expected = (gpu_memory(config, 0) or 0) / 2**30
    return Row(
        what,
        reserved + context,
        "GiB",
        note=f"{allocated:.2f} in tensors, {context:.2f} CUDA's own, {expected:.2f} expected; "
        f"{fit} fit into {total:.0f}",
        details={"reserved": reserved, "allocated": allocated, "context": context, "total": total},
    )


# Evaluation and data -------------------------------------------------------------------------


def evaluation(run: Run) -> Iterator[Row]:
    """On house numbers; shares are of an epoch of SVHN, computed from the steps trained here."""
    device, config = torch.device(run.device), house_numbers(run)
    took, dataset = seconds(lambda: data.load(config), device)
    count = len(dataset.train)
    yield Row(
        "house numbers opened", took, "s", note=f"{count:,} for training; made, the first time"
    )
    images = torch.from_numpy(np.array(dataset.train.x))
    took, images = seconds(lambda: images.to(device), device)
    yield Row(
        "images copied to the device", 1e3 * took, "ms", note=f"{images.nbytes / 2**20:.0f} MiB"
    )

    state = State.create(config, dataset.train, device)
    part = images[: (2 if run.small else 50) * config.batch_size]
    training.train_epoch(state, part)
    took, _ = seconds(lambda: training.train_epoch(state, part), device)
    rate = len(part) / took
    epoch = EPOCH / rate
    gflop = gflop_an_image(state.networks)
    yield Row(
        "training",
        rate,
        "images/s",
        run.share(rate, gflop),
        note=f"{epoch:.1f} s an epoch of {EPOCH:,}",
    )

    def pass_over() -> None:
        for _ in data.batches(images, config.batch_size, state.generator):
            pass

    pass_over()
    took, _ = seconds(pass_over, device)
    share = took / count * rate
    yield Row("batches alone", count / took, "images/s", note=f"{share:.1%} of training's time")
    yield from attempt("features of validation images", lambda: _features(state, dataset.valid.x))
    measures = {"val_error": protocol.val_error, "sample quality": quality.measure}
    for name, measure in measures.items():

        def row(name: str = name, measure: Callable = measure) -> Row:  # type: ignore[type-arg]
            measure(state.networks, dataset, config)  # imports and set-up
            took, found = seconds(lambda: measure(state.networks, dataset, config), device)
            details = {"values": found if isinstance(found, dict) else {name: found}}
            of_epoch = f"{took / epoch:.1%} of an epoch of {EPOCH:,} images"
            return Row(name, took, "s", note=of_epoch, details=details)

        yield from attempt(name, row)


def _features(state: State, x: np.ndarray) -> Row:
    """Encoder features on the device, without the copy to the host."""
    networks = state.networks

    def encode() -> None:
        with evaluating(networks):
            for part in chunks(networks, x):
                networks.features(part)

    encode()
    took, _ = seconds(encode, state.device)
    dtype = compute_dtype(state.config.precision, state.device)
    note = f"{len(x):,} in {1e3 * took:.0f} ms, {str(dtype).removeprefix('torch.')}"
    return Row("features of validation images", len(x) / took, "images/s", note=note)
