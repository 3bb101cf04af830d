"""What somebody deletes or renames in MLflow while a sweep goes on."""

import dataclasses
import re
import time

import pytest
from mlflow.exceptions import MlflowException

from ali.errors import UserError
from sweeps.engine import tracking
from sweeps.engine.endings import Ending, EndState
from sweeps.engine.options import Location
from sweeps.engine.status import show_status
from sweeps.engine.tracking import runs
from sweeps.engine.tracking.search import is_gone
from tests.integration.harness import collect_garbage, image, logged_steps

DONE = Ending(EndState.COMPLETED, "done")


def delete(client, to, what):
    if what == "experiment":
        client.delete_experiment(to.experiment)
    elif what == "sweep":
        client.delete_run(to.parent_run_id)
    else:
        client.delete_run(tracking.find_trial(client, to, "00000").info.run_id)


@pytest.mark.parametrize("what", ["sweep", "trial", "experiment"])
def test_what_is_deleted_meanwhile_is_restored_and_nothing_is_lost(local, what):
    client, to = local
    tracking.open_trial(client, to, "00000")
    run = tracking.TrialRun(to, "00000", {}, outage_seconds=5)
    run.epoch({"epoch": 1, "val_error": 0.5}, image())
    assert run.queue.flush(60)
    delete(client, to, what)
    run.epoch({"epoch": 2, "val_error": 0.4}, image())
    run.queue.close()
    assert run.queue.lost == 0
    delete(client, to, what)
    tracking.end_trial(client, to, "00000", DONE)
    assert logged_steps(client, to, "00000") == [1, 2]
    delete(client, to, what)
    tracking.set_best_trials(client, to, ["00000"])
    assert tracking.restore_sweep(client, "s") == to.experiment
    tracking.open_trial(client, to, "00000")  # as by a resume
    assert len(tracking.find_runs(client, to.experiment, kind="trial")) == 1
    parent = tracking.start_sweep(client, to.experiment, "s", "val_error", {})
    assert parent == to.parent_run_id
    assert len(client.search_experiments()) == 2, "the one that MLflow has, and ours"


@pytest.mark.parametrize("what", ["trial", "sweep", "experiment"])
def test_what_is_gone_for_good_is_logged_anew_and_lost_pictures_are_told(local, tmp_path, what):
    client, to = local
    first = tracking.open_trial(client, to, "00000", {"lr_d": 0.1}).info.run_id
    run = tracking.TrialRun(to, "00000", {"lr_d": 0.1}, outage_seconds=30, tags={"config": "{}"})
    run.text("{}", "config.json")
    run.epoch({"epoch": 1, "val_error": 0.5}, image())
    while not client.list_artifacts(first, "images"):
        time.sleep(0.05)
    delete(client, to, what)
    collect_garbage(to.uri)
    run.epoch({"epoch": 2, "val_error": 0.4}, image())
    running = {"00000": {"lr_d": 0.1}}
    if what == "trial":
        assert runs.keep_open(client, to, running) == ["00000"]
    else:  # as the driver does it
        with pytest.raises(MlflowException) as gone:
            runs.keep_open(client, to, running)
        assert is_gone(gone.value)
        assert tracking.restore_sweep(client, "s") is None
        to = reopened(client, to, tmp_path)
        assert runs.keep_open(client, to, running) == ["00000"] * (what == "experiment")
    run.queue.close()
    assert run.queue.lost == 0
    (again,) = tracking.find_runs(client, to.experiment, kind="trial")
    assert (again.info.run_id == first) == (what == "sweep")
    assert again.data.tags["mlflow.parentRunId"] == to.parent_run_id
    assert again.data.params["lr_d"] == "0.1" and again.data.tags["config"] == "{}"
    assert logged_steps(client, to, "00000") == [1, 2]
    assert "config.json" in [file.path for file in client.list_artifacts(again.info.run_id)]
    told = r".* lacks pictures of 00000 \([12] epochs?\)" if what != "sweep" else ""
    assert re.fullmatch(told, tracking.lost_records([again])), "the second went to the old run"
    assert runs.keep_open(client, to, running) == []


def reopened(client, to, folder):
    experiment = tracking.experiment_id(client, folder, restore=True)
    parent = tracking.start_sweep(client, experiment, "s", "val_error", {})
    return dataclasses.replace(to, experiment=experiment, parent_run_id=parent)


def test_a_full_training_whose_sweep_is_gone_for_good_says_how_to_go_on(local):
    client, to = local
    run = tracking.TrialRun(to, "00000", {}, outage_seconds=0, kind="best", create=True)
    run.open()
    delete(client, to, "experiment")
    collect_garbage(to.uri)
    with pytest.raises(UserError, match=r"MLflow has no sweep 's' any more .*--resume"):
        run.reopen()
    run.queue.close()


def test_a_reader_finds_a_renamed_experiment_and_creates_none(local, tmp_path):
    client, to = local
    client.rename_experiment(to.experiment, "archive")
    assert tracking.experiment_of(client, "s") == to.experiment
    assert tracking.restore_sweep(client, "s") == to.experiment
    with pytest.raises(UserError, match="no sweep 'other': it has s"):
        tracking.experiment_of(client, "other")
    for what, way in (("sweep", "mlflow runs restore --run-id"), ("experiment", "experiments")):
        tracking.open_trial(client, to, "00000")
        delete(client, to, what)
        with pytest.raises(UserError, match=way):
            show_status(Location(name="s", output_dir=tmp_path))
    assert [found.name for found in client.search_experiments()] == ["Default"]
    with pytest.raises(UserError, match="there is no MLflow database"):
        show_status(Location(name="s", output_dir=tmp_path / "elsewhere"))
    assert not (tmp_path / "elsewhere").exists()


def test_what_an_earlier_sweep_of_the_same_name_left_in_the_trash_stays_there(local):
    client, to = local
    old = tracking.open_trial(client, to, "00000").info.run_id
    client.delete_run(old)
    client.delete_run(to.parent_run_id)
    time.sleep(0.01)  # it is older by a millisecond at least
    parent = tracking.start_sweep(client, to.experiment, "s", "val_error", {})
    to = dataclasses.replace(to, parent_run_id=parent)
    assert tracking.open_trial(client, to, "00000").info.run_id != old
    assert client.get_run(old).info.lifecycle_stage == "deleted"
    client.delete_run(parent)
    tracking.restore_sweep(client, "s")
    (found,) = tracking.find_runs(client, to.experiment, kind="sweep")
    assert found.info.run_id == parent
