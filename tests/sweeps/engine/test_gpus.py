"""GPUs that trials share: the service is started once, ends by itself, and is done without where
it fails. The programs are stand-ins; `make gpu` uses the real ones."""

import logging
import multiprocessing
import os
import signal
import stat
import time
from pathlib import Path

import pytest
import ray
import torch

from ali import environment
from sweeps.engine import gpus

CONTROL = """#!/bin/sh
cd "$CUDA_MPS_PIPE_DIRECTORY" || exit 1
echo "$1 ${CUDA_VISIBLE_DEVICES-all}" >> calls
case "$1" in
  -d) sleep 0.2; touch control ;;
  *) read asked; test -e control || exit 1
     case "$asked" in quit*) rm control; echo quit >> calls ;; *) echo 4711 ;; esac ;;
esac
"""
NVIDIA_SMI = """#!/bin/sh
case "$1" in -L) echo "GPU 0: $KIND" ;; *) printf '24576\\n11264\\n' ;; esac
"""
# Of the probe only what it asks the service; libcuda.so.1 is not here.
WITHOUT_CUDA = "import subprocess" + gpus.PROBE[gpus.PROBE.index("\nasked") :]


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod((folder / name).stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the service of these tests is."""
    programs = tmp_path / "programs"
    programs.mkdir()
    program(programs, gpus.CONTROL, CONTROL)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setattr(gpus, "SYSTEM", tmp_path / "no such service")
    monkeypatch.setattr(gpus, "own_temp_folder", lambda: tmp_path)
    monkeypatch.setattr(gpus, "PROBE", WITHOUT_CUDA)
    monkeypatch.setattr(gpus, "IDLE", 1.0)
    return tmp_path / "mps"


def using(results, leave) -> None:
    results.put((gpus.join(0.25), os.environ.get("CUDA_MPS_PIPE_DIRECTORY")))
    leave.wait(60)


def started(count: int):
    """Processes that use the service until they are told to leave."""
    context = multiprocessing.get_context("fork")
    results, leave = context.Queue(), context.Event()
    workers = [context.Process(target=using, args=(results, leave)) for _ in range(count)]
    for worker in workers:
        worker.start()
    return workers, leave, [results.get(timeout=60) for _ in workers]


def eventually(seen, seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while not seen() and time.monotonic() < end:
        time.sleep(0.05)
    return seen()


def test_one_serves_all_gpus_of_a_node_as_long_as_a_process_uses_it(folder):
    workers, leave, found = started(3)
    assert found == [(True, str(folder))] * 3
    calls = (folder / "calls").read_text().splitlines()
    assert calls.count("-d all") == 1 and "-d 1" not in calls
    for worker in workers[1:]:
        worker.kill()
    time.sleep(3)
    assert (folder / "control").exists(), "one process still uses it"
    workers[0].kill()
    assert eventually(lambda: not (folder / "control").exists())
    workers, leave, found = started(1)
    assert found == [(True, str(folder))], "and is started anew"
    leave.set()
    assert eventually(lambda: not (folder / "control").exists())
    assert (folder / "calls").read_text().count("quit") == 2


def test_a_keeper_that_was_killed_is_replaced(folder):
    _, leave, _ = started(1)
    (keeper,) = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if str(folder / "kept").encode() in path.read_bytes()
    ]
    os.kill(keeper, signal.SIGKILL)
    _, leave_too, found = started(1)
    assert found == [(True, str(folder))]
    for gone in (leave, leave_too):
        gone.set()
    assert eventually(lambda: not (folder / "control").exists())
    assert (folder / "calls").read_text().count("-d") == 1


def test_a_worker_that_is_killed_while_it_joins_spoils_nothing(folder, monkeypatch):
    monkeypatch.setattr(gpus, "PROBE", "import time; time.sleep(60)")
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=gpus.join, args=(0.25,))
    worker.start()
    assert eventually(lambda: (folder / "control").exists())
    worker.kill()
    worker.join()
    monkeypatch.setattr(gpus, "PROBE", WITHOUT_CUDA)
    _, leave, found = started(1)
    leave.set()
    assert found == [(True, str(folder))]


def test_a_service_that_does_not_serve_is_not_used(folder, monkeypatch, caplog):
    """CUDA goes on without a service that does not answer; nothing else tells."""
    program(folder.parent / "programs", gpus.CONTROL, CONTROL.replace("echo 4711", "echo"))
    _, leave, found = started(1)
    leave.set()
    assert found == [(False, None)]
    began = time.monotonic()
    assert not gpus.join(0.5), "nor tried by the next trial"
    assert time.monotonic() - began < 0.5
    assert "a short while ago" in caplog.text
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(folder))
    assert not gpus.join(0.5), "nor one that the user names"


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA works here")
def test_the_probe_fails_without_cuda(folder, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(gpus, "own_temp_folder", lambda: folder.parent)
    monkeypatch.setenv("PATH", f"{folder.parent / 'programs'}{os.pathsep}{os.environ['PATH']}")
    assert not gpus.join(0.5) and not environment.has_mps()


def test_nothing_is_started_for_a_whole_gpu_or_none_or_without_the_program(folder, monkeypatch):
    assert not gpus.join(1.0) and not gpus.join(0.0)
    monkeypatch.setenv("PATH", str(folder.parent))
    assert not gpus.join(0.5)
    assert not folder.exists()


def test_gpus_are_described_and_parts_of_them_are_not_shared(folder, monkeypatch):
    assert gpus.describe_cards() is None, "no nvidia-smi"
    program(folder.parent / "programs", "nvidia-smi", NVIDIA_SMI)
    monkeypatch.setenv("KIND", "NVIDIA RTX 2080 Ti")
    assert gpus.describe_cards() == gpus.Cards(11264 * 2**20, shared=True)
    monkeypatch.setenv("KIND", "NVIDIA H200, MIG 1g.18gb Device 0")
    assert gpus.describe_cards() is None


@pytest.mark.parametrize(
    ("gib", "cards", "count"),
    [
        (1.6, gpus.Cards(16 * 2**30, True), 4),
        (3.9, gpus.Cards(16 * 2**30, True), 3),  # nvidia-smi tells some more than there is
        (4.0, gpus.Cards(11 * 2**30, True), 2),
        (4.9, gpus.Cards(8 * 2**30, True), 1),
        (20.0, gpus.Cards(16 * 2**30, True), 1),
        (1.6, gpus.Cards(16 * 2**30, False), 1),
        (None, gpus.Cards(16 * 2**30, True), 1),
        (1.6, None, 1),
    ],
)
def test_as_many_share_a_gpu_as_fit_and_only_by_the_service(gib, cards, count, monkeypatch):
    monkeypatch.setattr(gpus, "find_cards", lambda: cards)
    assert gpus.trials_on_a_gpu(None if gib is None else int(gib * 2**30)) == count


class Holder:
    """Holds what it has got."""


@pytest.mark.integration
def test_a_node_is_asked_by_ray(folder, monkeypatch):
    program(folder.parent / "programs", "nvidia-smi", NVIDIA_SMI)
    monkeypatch.setenv("KIND", "NVIDIA L4")
    ray.init(num_cpus=1, num_gpus=1, include_dashboard=False, logging_level=logging.ERROR)
    try:
        holder = ray.remote(num_gpus=1)(Holder).remote()  # as another sweep's trial
        ray.get(holder.__ray_ready__.remote())
        assert gpus.find_cards() == gpus.Cards(11264 * 2**20, shared=True)
    finally:
        ray.shutdown()
