"""kill -9 of the driver at any moment, then --resume: nothing lost, doubled or stuck."""

import itertools
import os
import signal
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from sweeps.engine.status import status
from tests.audit import audit
from tests.integration.harness import EPOCHS, Toy, collect_garbage, kill_when, wait_for

pytestmark = pytest.mark.versions

TRIALS = 8


@pytest.mark.long
def test_three_kills_and_a_resume(toy):
    toy.env["TOY_SECONDS"] = "0.3"
    options = ("--num-trials", str(TRIALS))
    kill_when(toy, (toy.runs / "toy" / "optuna.journal").exists, *options)
    kill_when(toy, lambda: toy.epochs().total() >= 5, "--resume")
    kill_when(toy, lambda: toy.epochs().total() >= 14, "--resume")
    before = {t.number: t.params for t in toy.study().get_trials()}
    toy.run("--resume")
    ends = audit(toy, TRIALS)
    assert "COMPLETE" in ends.values()
    after = toy.study().get_trials()
    assert all(params.items() <= after[number].params.items() for number, params in before.items())
    # Two slots, three kills: at most the epoch in hand and the one not yet saved are done again.
    repeated = sum(count - 1 for count in toy.epochs().values())
    assert repeated <= 3 * 2 * 2
    told = (toy.runs / "toy" / "sweep.log").read_text()  # of all drivers, one after the other
    assert told.count(f"sweep toy: {TRIALS} trials") >= 3 and f"[{TRIALS}/{TRIALS} ended]" in told


@pytest.mark.long
def test_what_is_deleted_in_mlflow_while_a_sweep_runs_is_restored(toy):
    toy.env["TOY_SECONDS"] = "0.5"
    process = toy.start("--num-trials", "3", "--grace-epochs", str(EPOCHS))
    wait_for(lambda: toy.epochs().total() >= 2, process)
    client, (parent,) = MlflowClient(toy.uri), toy.parents()
    client.delete_experiment(parent.info.experiment_id)
    wait_for(lambda: toy.epochs().total() >= 12, process)
    client.delete_run(parent.info.run_id)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in out + err, out + err
    assert set(audit(toy, 3).values()) == {"COMPLETE"}
    client.rename_experiment(parent.info.experiment_id, "archive")
    toy.run("--resume", "--num-trials", "4")
    assert {found.name for found in client.search_experiments()} == {"Default", "archive"}
    client.rename_experiment(parent.info.experiment_id, "ali")
    audit(toy, 4)


@pytest.mark.long
def test_what_mlflow_gc_takes_from_a_running_sweep_is_logged_anew(toy):
    toy.env["TOY_SECONDS"] = "3"  # on a busy machine a trial is to outlast the garbage collection
    process = toy.start("--num-trials", "4", "--grace-epochs", str(EPOCHS))
    wait_for(lambda: toy.epochs().total() >= 4, process)
    client, (parent,) = MlflowClient(toy.uri), toy.parents()
    client.delete_run(toy.mlflow()["00000"][0].info.run_id)
    collect_garbage(toy.uri)
    wait_for(lambda: toy.mlflow().get("00000") and toy.epochs().total() >= 14, process)
    client.delete_experiment(parent.info.experiment_id)
    collect_garbage(toy.uri)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in out + err, out + err
    assert set(audit(toy, 4).values()) == {"COMPLETE"}
    assert "trial 00000: its run in MLflow was deleted for good" in out
    assert "the sweep's run in MLflow was deleted for good" in out
    assert "MLflow did not take all records of the trials: it lacks " in out
    (parent,) = toy.parents()
    for (run,) in toy.mlflow().values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id


@pytest.mark.slow
def test_a_search_that_is_killed_three_times_goes_on_as_it_would_have(tmp_path, database):
    """At a concurrency of 1 the whole sweep replays; nothing is lost, doubled or drawn anew."""
    options = [
        "--num-trials",
        "12",
        "--startup-trials",
        "11",
        "--max-concurrent",
        "1",
        "--seed",
        "3",
    ]
    straight = Toy(tmp_path / "a", database=database)
    killed = Toy(tmp_path / "b", database=database)
    for toy in (straight, killed):
        toy.folder.mkdir()
    straight.run(*options)
    assert set(audit(straight, 12).values()) == {"COMPLETE", "PRUNED"}

    killed.env["TOY_SECONDS"] = "0.1"
    kill_when(killed, (killed.runs / "toy" / "optuna.journal").exists, *options)
    kill_when(killed, lambda: killed.epochs().total() >= 5, "--resume")
    client, (parent,) = MlflowClient(killed.uri), killed.parents()
    client.delete_run(parent.info.run_id)  # by somebody, in MLflow
    kill_when(killed, lambda: killed.epochs().total() >= 18, "--resume")
    client.delete_experiment(parent.info.experiment_id)
    killed.run("--resume")
    audit(killed, 12)
    for a, b in zip(straight.study().get_trials(), killed.study().get_trials(), strict=True):
        assert a.params == b.params
        assert (a.state, a.value) == (b.state, b.value)
        assert a.intermediate_values == b.intermediate_values
    # Each kill costs at most the epoch in hand and the one not yet saved.
    assert sum(count - 1 for count in killed.epochs().values()) <= 3 * 2


@pytest.mark.slow
def test_ctrl_c_ends_cleanly_a_second_one_at_once_and_a_damaged_checkpoint_gives_way(toy):
    toy.env["TOY_SECONDS"] = "0.5"
    process = toy.start("--num-trials", "2", "--grace-epochs", str(EPOCHS))
    wait_for(lambda: toy.epochs()[0, 4] == 1, process)
    client = MlflowClient(toy.uri)
    where = client.get_experiment_by_name("ali").experiment_id
    assert "sweep toy: running; of 2 trials" in status(client, where, "toy")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 130, out + err
    assert "stopped; resume with: " in out and "Traceback" not in out + err
    statuses = {run.info.status for found in toy.mlflow().values() for run in found}
    assert "RUNNING" not in statuses
    assert "sweep toy: interrupted; of 2 trials 0 running" in status(client, where, "toy")
    time.sleep(3)  # the trial's own process outlives its driver by a moment
    newest = max((toy.runs / "toy" / "00000").glob("checkpoint_*/epoch.json"))
    newest.write_text(f"[{EPOCHS}" + newest.read_text()[2:])  # a bit or two: still a checkpoint

    toy.env["TOY_SECONDS"] = "4"  # a clean end waits for an epoch's
    seen = toy.epochs().total()
    process = toy.start("--resume", "--num-trials", "3")
    wait_for(lambda: toy.epochs().total() > seen, process)
    process.send_signal(signal.SIGINT)
    told = list(itertools.takewhile(lambda line: "stopping" not in line, process.stdout))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert out.startswith("stopped at once; resume with: ") and "--resume" in out
    assert "Traceback" not in "".join(told) + out + err

    toy.env["TOY_SECONDS"] = "0.02"
    time.sleep(5)  # an epoch that was under way is logged yet
    before = toy.runs
    toy.runs_folder = before.rename(toy.folder / "moved")
    toy.run("--resume")
    assert audit(toy, 3)["00000"] == "COMPLETE"
    pictures = [path.parents[1] for path in (toy.runs / "artifacts").rglob("images/samples*.png")]
    assert len({folder.parent.name for folder in pictures}) == 3, "of all trials, old and new"
    assert not before.exists()
    assert toy.epochs()[0, 1] == 1, "not from the beginning"
    assert sum(count for (seed, _), count in toy.epochs().items() if seed == 0) <= EPOCHS + 5


def test_a_scheduler_stops_it_with_nobody_reading_its_output(toy):
    toy.env["TOY_SECONDS"] = "0.5"
    reader, writer = os.pipe()
    with open(writer, "w") as out:
        process = toy.start("--num-trials", "2", "--grace-epochs", str(EPOCHS), out=out)
    os.close(reader)
    wait_for(lambda: toy.epochs().total() >= 3, process)
    os.killpg(process.pid, signal.SIGTERM)  # Ray's processes are not of this group
    assert process.wait(timeout=60) == 130
    runs = [*toy.parents(), *(run for found in toy.mlflow().values() for run in found)]
    assert {run.info.status for run in runs} == {"KILLED"}


def test_a_raylet_that_is_gone_ends_it_with_a_word_before_ray_ends_it_without(toy):
    toy.env["TOY_SECONDS"] = "3"
    process = toy.start("--num-trials", "2", "--grace-epochs", str(EPOCHS))
    wait_for(lambda: toy.epochs().total() >= 1, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (raylet,) = (pid for pid in children if Path(f"/proc/{pid}/comm").read_text() == "raylet\n")
    os.kill(int(raylet), signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "Ray's processes ended; resume with: " in out, out + err
    runs = [*toy.parents(), *(run for found in toy.mlflow().values() for run in found)]
    assert {run.info.status for run in runs} == {"KILLED"}
    toy.env["TOY_SECONDS"] = "0.02"
    toy.run("--resume")
    assert set(audit(toy, 2).values()) == {"COMPLETE"}


def test_ctrl_c_before_there_is_a_trial_ends_cleanly_too(toy):
    process = toy.start("--num-trials", "2")
    wait_for((toy.runs / "toy" / "optuna.journal").exists, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 130, out + err
    assert "stopped; resume with: " in out and "Traceback" not in out + err
    assert not any(run.info.status == "RUNNING" for run in toy.parents())
