"""One sweep in which trials fail in every way there is: each ends once, for the right reason."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from mlflow import MlflowClient

from tests.audit import audit
from tests.integration.harness import EPOCHS, TOY, Toy

pytestmark = pytest.mark.versions

STATUS = TOY.parents[2] / "sweeps" / "status.py"

TRIALS = 12
FAULTS = {"1": "nan@2", "2": "crash@3", "3": "memory@1", "4": "die-once@2", "5": "die@2"}
FAULTS |= {"6": "stop-once@3", "0": "stop-once@0"}  # 0: first in its worker, it loads the data
FAULTS |= {"7": "die-each@4"}  # once in each epoch up to the fourth
FAULTS |= {"8": "brackets@2"}


@pytest.fixture(scope="module")
def swept(tmp_path_factory, database):
    # The grace is the whole budget, so that no trial is stopped before its fault.
    folder = tmp_path_factory.mktemp("faults")
    env = {"TOY": json.dumps(FAULTS), "PYTHONIOENCODING": "ascii"}
    toy = Toy(folder, env=env, database=database)
    toy.output = toy.run(
        *("--num-trials", str(TRIALS), "--grace-epochs", str(EPOCHS), "--max-failures", "2"),
        *("--bn-with-z", "--hang-seconds", "10"),
    )
    return toy


def end(toy, number):
    """(Optuna's state, MLflow's status, end_state, end_reason) of a trial."""
    trial = toy.study().get_trials()[number]
    (run,) = toy.mlflow()[f"{number:05d}"]
    tags = run.data.tags
    assert trial.user_attrs["end_state"] == tags["end_state"]
    return trial.state.name, run.info.status, tags["end_state"], tags["end_reason"]


def test_every_trial_ends_once_and_alike_everywhere(swept):
    statuses = swept.tune()
    assert set(statuses.values()) <= {"TERMINATED", "ERROR"}
    runs = swept.mlflow()
    assert sorted(runs) == sorted(statuses) == [f"{n:05d}" for n in range(TRIALS)]
    assert all(len(found) == 1 for found in runs.values())
    assert not any(t.state.name == "RUNNING" for t in swept.study().get_trials())


def test_a_nan_ends_its_trial_at_once(swept):
    # The bare stack: `nan < cutoff` is False, `tell` raises, the trial stays RUNNING.
    state, status, ended, reason = end(swept, 1)
    assert (state, status, ended) == ("PRUNED", "FAILED", "diverged")
    assert reason == "non-finite d_loss at step 2"
    assert swept.epochs()[1, 2] == 1 and swept.epochs()[1, 3] == 0


def test_a_deterministic_crash_is_not_tried_again(swept):
    state, _, ended, reason = end(swept, 2)
    assert (state, ended) == ("FAIL", "failed")
    assert reason == "RuntimeError: a bug that a second try would meet again"
    assert swept.epochs()[2, 3] == 1


def test_the_text_of_an_error_is_no_markup_and_is_printed_in_any_encoding(swept):
    reason = "ValueError: size [64, 3] of [/layers/0] ± [bold]"
    assert end(swept, 8)[2:] == ("failed", reason)
    report = " ".join(swept.output[swept.output.index("How trials ended") :].split())  # unwrapped
    assert f"00008: {reason.replace('±', '+-')}" in report and swept.output.isascii()


def test_a_crash_leaves_its_traceback_in_mlflow(swept):
    (run,) = swept.mlflow()["00002"]
    path = run.info.artifact_uri.removeprefix("file://") + "/traceback.txt"
    with open(path) as file:
        assert "_break" in file.read()


def test_lack_of_memory_is_told_apart_and_not_tried_again(swept):
    state, _, ended, _ = end(swept, 3)
    assert (state, ended) == ("FAIL", "out of memory")
    assert swept.epochs()[3, 1] == 1


def test_a_lost_process_goes_on_from_its_checkpoint(swept):
    state, status, ended, _ = end(swept, 4)
    assert (state, status, ended) == ("COMPLETE", "FINISHED", "completed")
    assert swept.epochs()[4, 1] == 1, "epoch 1 was in the checkpoint"
    assert swept.epochs()[4, 2] == 2


def test_a_process_lost_for_ever_is_given_up(swept):
    state, _, ended, reason = end(swept, 5)
    assert (state, ended) == ("FAIL", "failed")
    assert "--max-failures" in reason
    assert swept.epochs()[5, 2] == 3, "the first try and two more"


def test_processes_lost_with_progress_in_between_do_not_add_up(swept):
    assert end(swept, 7)[:3] == ("COMPLETE", "FINISHED", "completed")
    assert [swept.epochs()[7, epoch] for epoch in range(1, EPOCHS + 1)] == [2, 2, 2, 2, 1, 1]


@pytest.mark.long
def test_a_resume_gives_a_trial_that_was_given_up_another_try_from_its_checkpoint(toy):
    toy.env["TOY"] = json.dumps({"1": "die@4"})
    out = toy.run("--num-trials", "2", "--grace-epochs", str(EPOCHS), "--max-failures", "0")
    assert "a resume tries it again" in out and end(toy, 1)[0] == "FAIL"
    toy.env["TOY"] = "{}"
    assert "trial 00002 resumes: " in toy.run("--resume")
    assert end(toy, 2)[:3] == ("COMPLETE", "FINISHED", "completed")
    assert [toy.epochs()[1, epoch] for epoch in range(1, EPOCHS + 1)] == [1, 1, 1, 2, 1, 1]
    assert list(toy.study().get_trials()[2].intermediate_values) == list(range(1, EPOCHS + 1))
    assert end(toy, 1)[1:3] == ("FAILED", "failed"), "the first try stays as it was"
    assert not list((toy.runs / "toy" / "00001").glob("checkpoint_*"))
    assert "resumes" not in toy.run("--resume")


def test_a_trial_that_hangs_loses_its_process_and_goes_on(swept):
    state, status, ended, _ = end(swept, 6)
    assert (state, status, ended) == ("COMPLETE", "FINISHED", "completed")
    assert [swept.epochs()[6, epoch] for epoch in range(1, EPOCHS + 1)] == [1, 1, 2, 1, 1, 1]
    for number in (6, 0):  # in an epoch, and before the first one, while it loads its data
        assert swept.output.count(f"trial {number:05d}: no result for 10 s (--hang-seconds)") == 1
    state, status, ended, _ = end(swept, 0)
    assert (state, status, ended) == ("COMPLETE", "FINISHED", "completed")
    assert all(swept.epochs()[0, epoch] == 1 for epoch in range(1, EPOCHS + 1))


def test_each_epoch_is_logged_once_with_its_pictures(swept):

    client = MlflowClient(f"sqlite:///{swept.runs}/mlflow.db")
    (run,) = swept.mlflow()["00004"]
    history = client.get_metric_history(run.info.run_id, "val_error")
    assert [m.step for m in history] == list(range(1, EPOCHS + 1))
    images = [a.path for a in client.list_artifacts(run.info.run_id, "images")]
    assert any("samples" in path for path in images)


def test_parameters_and_versions_are_logged(swept):
    (run,) = swept.mlflow()["00000"]
    params, tags = run.data.params, run.data.tags
    assert {"lr_d", "log10_lr_d", "bn_x", "seed"} <= set(params) and len(params) < 22
    assert {"data_fingerprint", "code_version", "threads"} <= set(tags)
    assert {f"version_{name}" for name in ("torch", "ray", "optuna", "mlflow")} <= set(tags)
    assert len(json.loads(tags["config"])) > 30, "the whole configuration, which is a file, too"
    client = MlflowClient(swept.uri)
    assert "config.json" in [a.path for a in client.list_artifacts(run.info.run_id)]
    assert params["lr_d"] == "0.0001", "the paper's own point goes first"
    (parent,) = swept.parents()
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_batch_norm_with_z_is_tried_where_it_is_asked_for(swept):
    assert all("bn_z" in trial.params for trial in swept.study().get_trials())


def test_the_report_names_ends_and_next_commands(swept):
    for text in (
        "diverged",
        "out of memory",
        "Importance",
        "sweeps/ui.py --name toy",
        "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning",
    ):
        assert text in swept.output
    assert "best.py" not in swept.output


def test_what_is_no_experiment_of_alis_is_not_trained_as_one(swept):
    best = [sys.executable, STATUS.with_name("best.py"), "--output-dir", swept.runs]
    found = subprocess.run([*best, "--name", "toy"], capture_output=True, text=True)
    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert "an experiment of your own, ToyExperiment" in found.stderr


def test_disk_used_by_checkpoints_is_bounded(swept):
    kept = [path.parent.name for path in (swept.runs / "toy").glob("*/checkpoint_*")]
    assert len(kept) == 4 == len(set(kept)), "one of each of the best three"
    assert "00005" in kept, "and of the one that was given up: a resume tries it again"


@pytest.mark.long
def test_a_full_disk_loses_nothing(small_disk, tmp_path):
    folder, resize = small_disk
    toy = Toy(tmp_path, runs_folder=folder / "runs")
    process = toy.start("--num-trials", "4", "--outage-seconds", "2")
    process.communicate(timeout=240)
    resize(60_000)
    toy.run("--resume", "--num-trials", "5")
    audit(toy, 5)


def test_the_sweep_says_where_it_logs_and_how_busy_its_slots_were(swept):
    assert f"logs: sqlite:///{swept.runs}/mlflow.db; files: {swept.runs}/toy" in swept.output
    assert re.search(r"slots were in use \d+% of \d+ s", swept.output)


def test_status_is_read_from_mlflow_alone(swept, tmp_path):
    shutil.copy(swept.runs / "mlflow.db", tmp_path)  # and none of the sweep's files
    command = [sys.executable, STATUS, "--output-dir", tmp_path, "--name"]
    shown = subprocess.run([*command, "toy"], capture_output=True, text=True, check=True).stdout
    assert f"sweep toy: completed; of {TRIALS} trials 0 running" in shown
    assert "1 diverged" in shown and f"{EPOCHS}/{EPOCHS}" in shown
    other = subprocess.run([*command, "other"], capture_output=True, text=True)
    assert other.returncode == 2 and other.stderr.count("\n") == 1 and "toy" in other.stderr
