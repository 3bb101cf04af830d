"""The comparison of Table 1's models: sweeps, trainings and the table, with real processes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from sweeps.engine.reporting.findings import EARLIER
from tests.paths import ROOT

TINY = "--data house-numbers --train-size 400 --labels 50 --width 0.1 --draws 2 --unlabelled 0"
TINY += " --search-minutes 0.05 --training-minutes 0.05 --models ali swwae-plain"


def command(*arguments):
    return [sys.executable, "-m", "benchmarks.table1", *map(str, arguments)]


def run(*arguments, expect=0):
    found = subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, timeout=900)
    out, err = found.stdout.decode(), found.stderr.decode()
    assert found.returncode == expect, f"{out}\n{err}"
    return out if not expect else err


@pytest.mark.integration
@pytest.mark.long
def test_each_model_is_searched_trained_and_tested_once_and_a_kill_loses_nothing(tmp_path):
    options = [*TINY.split(), "--output-dir", tmp_path, "--objective", EARLIER, "--seeds"]
    with open(tmp_path / "log", "w") as log:
        killed = subprocess.Popen(command(*options, 1), cwd=ROOT, stdout=log, stderr=log)
    until = time.monotonic() + 600
    while not (tmp_path / "ali" / "found.json").exists():
        assert killed.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
        time.sleep(0.2)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    out = run(*options, 1)
    assert "sweep ali: " not in out and "minimizing val_error" in out
    assert "minimizing score" in (tmp_path / "log").read_text()
    rows = {row["row"]: row for row in json.loads((tmp_path / "table1.json").read_text())["rows"]}
    for name, folder in (("ALI", "ali"), ("SWWAE without dropout", "swwae-plain")):
        found = json.loads((tmp_path / folder / "found.json").read_text())["config"]
        trained = json.loads((tmp_path / folder / "training-0" / "config.json").read_text())
        same = {"seed": 0, "draw": 0, "epochs": 1, "eval_every": 1}
        assert {**trained, **same} == {**found, **same}
        assert trained["seed"] != found["seed"] and trained["epochs"] > found["epochs"]
        assert 0 < rows[name]["measured"]["mean"] < 1
        assert rows[name]["measured"]["epochs"] == trained["epochs"]
    assert json.loads((tmp_path / "swwae-plain" / "found.json").read_text())["config"][
        "dropout_fc"
    ] == pytest.approx(0)
    assert (tmp_path / "table1.png").exists()
    again = run(*options, 1)
    assert "epoch" not in again.partition("Table 1")[0] and "measuring" not in again
    two = run(*options, 2)
    assert "2 × " in two and "measuring ALI:" in two
    assert "has other options" in run(*options, 2, "--width", 0.2, expect=2)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--models", "ali", "dcgan"], "--models dcgan: choose from ali, gan, "),
        (
            ["--data", "house-numbers", "--objective", "a = 1 +"],
            "'1 +' is no arithmetic of metrics",
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path, given, says):
    said = run(*given, "--output-dir", tmp_path / "out", expect=2)
    assert says in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
