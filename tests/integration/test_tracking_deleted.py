"""What somebody deletes or renames in MLflow while a sweep goes on."""

import dataclasses
import time

import pytest

from ali.errors import UserError
from sweeps.engine import tracking
from sweeps.engine.endings import Ending, EndState
from sweeps.engine.options import Location
from sweeps.engine.status import show_status
from tests.integration.harness import image, logged_steps

DONE = Ending(EndState.COMPLETED, "done")


def delete(client, to, what):
    run = tracking.find_trial(client, to, "00000")
    if what == "experiment":
        client.delete_experiment(to.experiment)
    else:
        client.delete_run(run.info.run_id if what == "trial" else to.parent_run_id)


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
