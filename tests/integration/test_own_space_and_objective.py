"""A space and an objective of one's own, as processes."""

import re

import pytest

import sweeps
from tests.integration.harness import EPOCHS
from tests.integration.test_end_to_end import ROOT, python

SVHN, BEST = ROOT / "sweeps" / "svhn.py", ROOT / "sweeps" / "best.py"

SPACE = """
lr = {low = 1e-4, high = 1e-3}
dropout = {choices = [0.1, 0.2]}
slope = 0.1
width = {low = 0.1, high = 0.5}
batch_size = {choices = [16, 32]}
"""


@pytest.mark.long
def test_a_space_by_file_and_an_objective_to_maximize(toy, tmp_path):
    file = tmp_path / "own.toml"
    file.write_text(SPACE)
    score = ("--objective", "score = 1 - val_error", "--direction", "maximize")
    told = toy.run("--num-trials", "6", "--race", "3", "--space", str(file), *score)
    assert "maximizing score" in told and "note: the space does not have the point" in told
    table = told[told.index("Best trials of ") :]
    values = [float(value) for value in re.findall(r"^0000\d +(0\.\d{4}) ", table, re.M)][:6]
    assert len(values) == 6 and values[0] == max(values), "the best first"

    found = sweeps.load(toy.name, toy.runs)
    assert (found.objective, found.direction) == ("score", "maximize")
    frame = found.dataframe()
    assert frame.score["00000"] == pytest.approx(1 - frame.val_error["00000"])
    assert set(frame.dropout_x) <= {0.1, 0.2} and frame.slope_encoder.eq(0.1).all()
    assert frame.width.between(0.1, 0.5).all() and set(frame.batch_size) <= {16, 32}
    again = frame[frame.confirms.notna()]
    assert len(again) == 2 and set(again.confirms) <= set(frame.index)
    searched = frame[frame.confirms.isna()]
    assert list(searched.expected) == sorted(searched.expected, reverse=True)
    curves = found.curves()
    assert len(curves) == 8 * EPOCHS and {"score", "val_error", "d_loss"} <= set(curves)

    (parent,) = toy.parents()
    assert parent.data.tags["objective"] == "score" and parent.data.tags["direction"] == "maximize"
    assert parent.data.tags["formula"] == "1 - val_error"
    toy.run("--resume", "--num-trials", "7")
    assert len(sweeps.load(toy.name, toy.runs).trials) == 9


@pytest.mark.long
def test_the_full_training_follows_the_objective(tmp_path):
    """And on labelled images it is tested for its error all the same."""
    options = "--data house-numbers --width 0.1 --train-size 600 --labels 100 --draws 1 --epochs 1"
    options += " --batch-size 50 --num-trials 1 --max-concurrent 1 --cpus-per-trial 1"
    score = ["--objective", "score = val_error + 0.1 * sample_distance"]
    out = python(SVHN, "--name", "own", *options.split(), *score, cwd=tmp_path)
    assert "minimizing score" in out and "without training" not in out
    best = [BEST, "--name", "own", "--svms", "2", "--threads", "1"]
    told = python(*best, "--seeds", "2", cwd=tmp_path)
    lines = [line for line in told.splitlines() if re.search(r"\d0000", line)]
    scores = [float(value) for line in lines for value in re.findall(r"│ +(\d\.\d{4}) │", line)[:1]]
    (chosen,) = [line for line in lines if "(best by validation)" in line]
    assert len(scores) == 2 and f"{min(scores):.4f}" in chosen
    assert "test_error_mean" in told or "Table 1" in told
    (run, *_) = sweeps.load("own", tmp_path / "runs").dataframe().itertuples()
    assert run.score == pytest.approx(run.val_error + 0.1 * run.sample_distance)
