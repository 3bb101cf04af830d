"""The live comparison: real sweeps of each method, and trainings of what they announce."""

import json
import os
import subprocess
import sys

import pytest

from ali.errors import UserError
from benchmarks.live import FREE, foretold
from benchmarks.live_searches import FOUND, SEARCHES, TESTED, Budget, Run, begin
from sweeps import Objective
from sweeps.engine.reporting.findings import EARLIER
from tests.paths import REAL_DATA, ROOT

DATA = REAL_DATA / "svhn"
needs_crops = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real images in {DATA}")


def live(*arguments):
    command = [sys.executable, "-m", "benchmarks.live", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


@needs_crops
@pytest.mark.integration
@pytest.mark.long
def test_each_method_searches_and_what_it_announces_is_tested(tmp_path):
    small = "--repeats 1 --budget 6 --epochs 3 --full-epochs 3 --seeds 1 --width 0.1 --draws 2"
    options = ["run", "--data-dir", DATA, "--output-dir", tmp_path, *small.split()]
    options += ["--objective", EARLIER]
    whole = live(*options)
    assert whole.returncode == 0, whole.stderr
    folders = [folder for folder in tmp_path.iterdir() if folder.is_dir()]
    assert len(folders) == len(SEARCHES)
    for folder in folders:
        found = json.loads((folder / FOUND).read_text())
        assert found["epochs"] >= 6 and 0 < found["value"] < 1.2
        assert 0 < json.loads((folder / "full-0" / TESTED).read_text())["test_error_mean"] < 1
        trained = json.loads((folder / "full-0" / "curve.json").read_text())["config"]
        assert {**trained, "seed": 0, "epochs": 3} == {**found["config"], "seed": 0}
        assert trained["seed"] != found["config"]["seed"]
    again = live("report", "--output-dir", tmp_path)
    assert all(name in again.stdout for name in SEARCHES)
    other = live(*options, "--budget", "9")
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "other options" in other.stderr


def test_a_report_of_nothing_says_so(tmp_path):
    found = live("report", "--output-dir", tmp_path)
    assert found.returncode == 2 and "start `run` first" in found.stderr


def test_what_foretold_the_end_is_told():
    """Here sample_distance is in the order of the end from the start, and val_error is reversed."""
    curves = [
        [
            {"epoch": 1, "val_error": 0.9 - end, "sample_distance": end},
            {"epoch": 2, "d_loss": 1.0},
            {"epoch": 9, "val_error": end, "sample_distance": 2 * end},
        ]
        for end in (0.1, 0.2, 0.3, 0.4)
    ]
    shown = foretold(curves, Objective.parse("score = val_error + 10 * sample_distance"))
    told = {column.header: list(column.cells) for column in shown.columns}
    assert list(told) == ["after epoch", "val_error", "sample_distance", "score"]
    assert told["val_error"][0] == "-1.00" and told["val_error"][-1] == "+1.00"
    assert set(told["sample_distance"]) == set(told["score"]) == {"+1.00"}


def test_the_last_result_of_a_trial_which_tune_gives_twice_counts_once():
    budget = Budget(9)
    for trial, epoch in [("a", 3), ("b", 3), ("a", 6), ("a", 6)]:
        budget(trial, {"epoch": epoch})
    assert (budget.epochs, budget.stop_all()) == (9, True)


def test_a_comparison_of_an_earlier_version_goes_on(tmp_path):
    """It lacks the options that there were not then: they have their defaults."""
    begin(tmp_path, Run(data_dir=tmp_path, budget=9), FREE)
    (kept,) = tmp_path.iterdir()
    earlier = json.loads(kept.read_text())
    del earlier["objective"]
    kept.write_text(json.dumps(earlier))
    with pytest.raises(UserError, match="has other options"):
        begin(tmp_path, Run(data_dir=tmp_path, budget=9, objective="sample_distance"), FREE)
    begin(tmp_path, Run(data_dir=tmp_path, budget=9), FREE)


PARENT = """
import multiprocessing, os, time
from benchmarks.processes import end_with

def child(parent):
    end_with(parent, {sent})
    print("waits", flush=True)
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        print("stops", flush=True)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=child, args=[os.getpid()])
    process.start()
    process.join()
"""


@pytest.mark.parametrize(("sent", "said"), [("2", "stops\n"), ("9", "")])
def test_a_search_ends_with_the_comparison_that_was_killed(tmp_path, sent, said):
    script = tmp_path / "parent.py"
    script.write_text(PARENT.replace("{sent}", sent))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout.readline() == "waits\n"
    parent.kill()
    assert parent.communicate(timeout=30)[0] == said  # the end of the file: nobody has it open
