"""Small states, and what tests of checkpoints do with them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from ali.config import Config
from ali.data import Images
from ali.training import step
from ali.training.state import State

SMALL = Config(width=0.125, batch_size=8, precision="fp32", epochs=4)


def images() -> Images:
    return Images(np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8), None)


def trained(config: Config = SMALL, epochs: int = 1) -> State:
    state = State.create(config, images(), "cpu")
    for _ in range(epochs):
        step.train_epoch(state, torch.from_numpy(images().x))
    return state


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
