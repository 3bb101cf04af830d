"""Mistakes in a benchmark's options: one line, exit code 2, and nothing is written."""

import os
import subprocess
import sys

import pytest

from tests.paths import ROOT

PYTHON = [sys.executable, "-m"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("table1 --data svhn --data-dir nowhere", "nowhere is not a folder"),
        ("table1 --data house-numbers --models ali nothing", "--models nothing: choose from ali, "),
        ("table1 --data house-numbers --search-minutes 0", "--search-minutes must be above 0"),
        ("table1 --data house-numbers --seeds 0", "--seeds must be at least 1, not 0"),
        ("live run --data-dir nowhere", "nowhere is not a folder"),
        ("live run --data-dir nowhere --repeats 0", "--repeats must be at least 1, not 0"),
        ("live run --data-dir nowhere --methods ours", "--methods ours: choose from this project"),
        ("live run --data-dir nowhere --objective a+", "--objective: 'a+' is no arithmetic"),
        ("search house-numbers --objective 0-sample_separation", "some runs of the table have no"),
        ("search mixture --objective val_error", "has no metric 'val_error'; it has code_use"),
        ("learning_curves run mixture --processes 0", "--processes must be at least 1, not 0"),
        ("search mixture --replays 0", "--replays must be at least 1, not 0"),
        ("search mixture --methods ours", "--methods ours: choose from "),
        ("step --turns 0", "--turns must be at least 1, not 0"),
        ("step --width 0", "--width must be in (0, 8], not 0.0"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(tmp_path, command, says):
    found = subprocess.run(
        [*PYTHON, *f"benchmarks.{command}".split()], cwd=tmp_path, capture_output=True, text=True,
        timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (found.returncode, found.stderr.count("\n")) == (2, 1), found.stderr
    assert says in found.stderr
    assert not list(tmp_path.iterdir())
