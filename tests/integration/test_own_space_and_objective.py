"""A sweep of the toy in a space and for an objective of one's own, as processes."""

import re

import pytest

import sweeps
from tests.integration.harness import EPOCHS

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
    values = [float(value) for value in re.findall(r"^ 0000\d  (0\.\d{4}) ", told, re.M)]
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
