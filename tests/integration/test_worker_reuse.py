"""Trials run in the processes of those before them, and do not notice."""

import json
import os
import subprocess
import sys

import pytest
import torch

from ali import experiment
from ali.config import Config
from tests.audit import audit, read_runs, read_tune
from tests.integration.harness import EPOCHS, TOY, MlflowClient

pytestmark = pytest.mark.versions


def test_trials_share_processes_and_start_clean(toy):
    # In two of them the trial before has failed: its process is as good as another.
    toy.env.update(TOY=json.dumps({"2": "nan@3", "3": "crash@2"}), TOY_SECONDS="0.2")
    options = ("--num-trials", "8", "--max-concurrent", "2", "--grace-epochs", str(EPOCHS))
    toy.run(*options)
    starts = toy.starts()
    assert sorted(seed for seed, _, _ in starts) == list(range(8)), "each trial started once"
    assert {epoch for _, epoch, _ in starts} == {0}, "and from the beginning"
    processes = [pid for _, _, pid in starts]
    assert len(set(processes)) == 2
    assert processes.index(processes[4]) < 4 and len(set(processes[4:])) == 2, "after a failure too"

    client = MlflowClient(toy.uri)
    for number in (0, 1, 4, 5, 6, 7):
        (run,) = toy.mlflow()[f"{number:05d}"]
        history = client.get_metric_history(run.info.run_id, "total_train_seconds")
        total = {metric.step: metric.value for metric in history}
        expected = {epoch: pytest.approx(0.2 * epoch) for epoch in range(1, EPOCHS + 1)}
        assert total == expected, "no seconds of the trial before"
    kept = sorted((toy.runs / toy.name).glob("*/checkpoint_*/metrics.json"))
    assert kept
    for file in kept:
        history = json.loads(json.loads(file.read_text())["history"])
        assert [metrics["epoch"] for metrics in history] == list(range(1, EPOCHS + 1))


@pytest.mark.slow
def test_a_trial_in_a_used_process_is_the_trial_in_a_new_one(tmp_path, database, monkeypatch):
    """The real training: networks, Adam and random numbers are those of the trial's own seed."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mlflow.db").write_bytes(database.read_bytes())
    sweep = "--name s --data house-numbers --width 0.125 --train-size 200 --labels 100 --draws 1"
    sweep += " --batch-size 50 --epochs 2 --grace-epochs 2 --num-trials 2 --max-concurrent 1"
    command = [sys.executable, str(TOY.parents[2] / "sweeps" / "svhn.py"), *sweep.split()]
    env = {key: text for key, text in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(
        [*command, "--cpus-per-trial", "1"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (trial.process for _, trial in read_tune(tmp_path / "runs" / "s"))
    assert first == second, "one process"

    runs = read_runs(MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db"), "s", "trial")
    (run,) = [run for run in runs if run.data.tags["trial_id"] == "00001"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        *_, (_, alone) = experiment.run(Config.from_dict(json.loads(run.data.tags["config"])))
    finally:
        torch.set_num_threads(threads)
    for metric in ("d_loss", "g_loss", "val_error", "sample_distance"):
        assert run.data.metrics[metric] == alone[metric], metric


def test_a_sweep_without_faults_is_whole_in_reused_processes(toy):
    toy.run("--num-trials", "5", "--max-concurrent", "1")
    audit(toy, 5)
    assert len({pid for _, _, pid in toy.starts()}) == 1
