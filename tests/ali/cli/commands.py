"""Running `python -m ali` in tests: as a process, or within this one."""

import json
import os
import subprocess
import sys

import numpy as np

from ali import __main__ as commands
from ali.data import Images
from ali.models.tables import paper_table
from ali.training.state import State

TINY = ["--width", "0.1", "--batch-size", "20", "--labels", "20", "--draws", "1"]
TINY += ["--precision", "fp32", "--threads", "1"]


def ali(*arguments, expect=0, **environment):
    """Runs `python -m ali`; its exit code must be `expect`. Returns (stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, "-m", "ali", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        timeout=120,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout, done.stderr


def here(*arguments):
    """The same within this process, where start-up is not what is tested."""
    commands.run([str(argument) for argument in arguments])


def untrained(folder, config):
    """A checkpoint without training, which takes no data."""
    channels, height, width = paper_table(config).image
    dtype = np.float32 if config.data == "mixture" else np.uint8
    images = Images(np.zeros((4, height, width, channels), dtype), None)
    State.create(config, images, "cpu").save(folder)
    return folder


def epochs(folder):
    return [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").open()]


def contents(folder):
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def mistake(tmp_path, *arguments, says):
    before = contents(tmp_path)
    _, err = ali(*arguments, expect=2)
    assert err.startswith("error: ") and len(err.splitlines()) == 1, err
    assert says in err
    assert contents(tmp_path) == before
