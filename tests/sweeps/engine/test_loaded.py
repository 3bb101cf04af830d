"""`sweeps.load`: DataFrames of a study, the best, and what is not there."""

import math

import pytest

import sweeps
from sweeps.engine.endings import Ending, EndState
from sweeps.engine.options import JOURNAL, Options
from sweeps.engine.study import Study

pytestmark = pytest.mark.versions


@pytest.fixture
def options(tmp_path):
    return Options(name="s", output_dir=tmp_path)


@pytest.fixture
def swept(options, point):
    """Three trials, of which one is stopped and one runs, and another seed of the first."""
    options.folder.mkdir()
    options.save()
    study = Study(options.folder / JOURNAL, "s", seed=0)
    study.set_search({}, "sample_distance")
    study.ask(lambda trial: {**point(trial), "seed": 0, "width": 0.5})
    for number in (1, 2):
        study.ask(lambda trial, n=number: {**point(trial), "seed": n, "width": 0.25})
    study.enqueue_again(0)
    study.ask(lambda trial: {**point(trial), "seed": 3, "width": 0.5})
    for number, values in enumerate([(3.0, 2.0), (4.0,), (2.5,), (3.5, 2.5)]):
        for epoch, value in enumerate(values, start=1):
            study.report(number, epoch, value)
    completed, stopped = Ending(EndState.COMPLETED, "full"), Ending(EndState.STOPPED_EARLY, "cut")
    study.tell(0, completed, 2.0)
    study.tell(1, stopped, 4.0)
    study.tell(3, completed, 2.5)
    return options


def test_one_row_a_trial(swept):
    found = sweeps.load(swept)
    frame = found.dataframe(metrics=False)
    assert list(frame.index) == ["00000", "00001", "00002", "00003"]
    assert list(frame.sample_distance) == [2.0, 4.0, 2.5, 2.5]
    assert list(frame.end_state) == ["completed", "stopped early", "not ended", "completed"]
    assert frame.end_reason["00001"] == "cut" and frame.confirms["00003"] == "00000"
    assert list(frame.epochs) == [2, 1, 1, 2] and list(frame.seed) == [0, 1, 2, 3]
    assert list(frame.width) == [0.5, 0.25, 0.25, 0.5], "they differ in it"
    assert set(frame.bn_x.iloc[0]) <= {"0", "1"} and frame.lr_d.between(2e-5, 2e-3).all()
    known = (2.0 + 2.5) / 2  # its two runs, the one configuration that has completed
    assert frame.expected["00000"] == frame.expected["00003"] == pytest.approx(known)
    assert math.isnan(frame.expected["00001"]) and math.isnan(frame.expected_low["00000"])


def test_one_row_a_trial_and_epoch(swept):
    curves = sweeps.load("s", swept.output_dir).curves(metrics=False)
    assert list(curves) == ["trial_id", "epoch", "sample_distance"]
    first = curves[curves.trial_id == "00000"]
    assert list(first.epoch) == [1, 2] and list(first.sample_distance) == [3.0, 2.0]
    assert len(curves) == 6


def test_the_best_and_any_other(swept):
    found = sweeps.load(swept)
    assert (found.name, found.objective, found.direction) == ("s", "sample_distance", "minimize")
    assert repr(found) == "<sweep s: 4 trials, 3 ended>"
    assert found.best.trial_id == "00000" and found.best.config["width"] == 0.5
    assert found.best.values == {1: 3.0, 2: 2.0} and found.options.num_trials == 50
    assert found.trial("00002").ending is None
    assert found.importance().empty, "too few trials"
    with pytest.raises(sweeps.UserError, match="no trial '7'; it has 00000, 00001"):
        found.trial("7")
    with pytest.raises(sweeps.UserError, match=r"no checkpoint of 00000 is in .*--keep"):
        found.best.networks()
    with pytest.raises(sweeps.UserError, match=r"full training of trial 00000.*best\.py --name s"):
        found.best.networks(full_training=True)
    with pytest.raises(sweeps.UserError, match="no MLflow database"):
        found.dataframe()


def test_a_sweep_that_has_found_nothing_yet(options):
    options.folder.mkdir()
    options.save()
    Study(options.folder / JOURNAL, "s", seed=0).set_search({}, "val_error")
    found = sweeps.load(options)
    assert found.dataframe(metrics=False).empty and found.curves(metrics=False).empty
    with pytest.raises(sweeps.UserError, match="has completed its full budget yet"):
        _ = found.best


def test_a_sweep_that_is_not_there(swept):
    with pytest.raises(sweeps.UserError, match=r"no sweep 'other' in .*; found: s"):
        sweeps.load("other", swept.output_dir)


def test_a_sweep_whose_journal_is_in_a_bucket(swept, tmp_path, monkeypatch):
    """The copies there are read; nothing is written here."""
    import shutil

    from sweeps.engine import loaded

    bucket = tmp_path / "bucket"
    shutil.move(swept.folder, bucket / "s")
    here = sweeps.Location(name="s", output_dir=tmp_path / "runs", storage_path=f"file://{bucket}")
    assert here.storage.remote
    found = loaded.LoadedSweep(here)
    assert found.best.trial_id == "00000" and not (tmp_path / "runs").exists()
