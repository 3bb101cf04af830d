"""GPUs that trials share: the service is started once a node, and done without where it fails."""

import multiprocessing
import os
import stat
from pathlib import Path

import pytest
import torch

from ali import environment
from sweeps.engine import mps

CONTROL = """#!/bin/sh
echo "$1 ${CUDA_VISIBLE_DEVICES-all}" >> "$CUDA_MPS_PIPE_DIRECTORY/calls"
case "$1" in
  -d) sleep 0.2; touch "$CUDA_MPS_PIPE_DIRECTORY/control" ;;
  *) read asked; echo "$asked" >> "$CUDA_MPS_PIPE_DIRECTORY/calls"
     test -e "$CUDA_MPS_PIPE_DIRECTORY/control" ;;
esac
"""


@pytest.fixture
def service(tmp_path, monkeypatch):
    """A program in the service's place, and the folder that it is started for."""
    programs = tmp_path / "programs"
    programs.mkdir()
    program = programs / mps.CONTROL
    program.write_text(CONTROL)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    monkeypatch.setattr(mps, "SYSTEM", tmp_path / "no such service")
    return tmp_path / "mps"


def joined(folder: Path, results) -> None:
    mps.PROBE = ""
    results.put((mps.join(0.25, folder), os.environ["CUDA_MPS_PIPE_DIRECTORY"]))


def test_one_is_started_for_all_gpus_of_a_node_and_ends(service):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=joined, args=(service, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=30) for _ in workers] == [(True, str(service))] * 3
    for worker in workers:
        worker.join()
    calls = (service / "calls").read_text().splitlines()
    assert calls.count("-d all") == 1 and "-d 1" not in calls
    mps.end(service)
    assert not service.exists()


def test_a_service_through_which_cuda_fails_is_not_used(service, caplog):
    """The real probe, on a machine without CUDA."""
    if torch.cuda.is_available():
        pytest.skip("CUDA works here")
    assert not mps.join(0.5, service)
    assert not environment.has_mps()
    assert "take turns" in caplog.text


def test_nothing_is_started_for_a_whole_gpu_or_none_or_beside_another_service(service, monkeypatch):
    assert not mps.join(1.0, service) and not mps.join(0.0, service)
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/somewhere")
    assert mps.join(0.5, service)
    assert not service.exists()
    mps.end(service)


def test_without_its_program_trials_take_turns(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not mps.join(0.5, tmp_path / "mps")
