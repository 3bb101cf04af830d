"""Trials run in the processes of those before them, and do not notice."""

import json

import pytest

from tests.integration.harness import EPOCHS, MlflowClient

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


def test_after_an_error_of_cuda_a_trial_goes_on_in_another_process(toy):
    """CUDA does not work again in the first one, nor would it for the trials after it."""
    toy.env.update(TOY=json.dumps({"0": "cuda-once@3"}), TOY_SECONDS="0.2")
    toy.run("--num-trials", "2", "--max-concurrent", "1", "--grace-epochs", str(EPOCHS))
    (first, _, one), (second, epochs, other), (next_trial, _, later) = toy.starts()
    assert (first, second, next_trial) == (0, 0, 1)
    assert epochs == 2, "from its last checkpoint"
    assert one not in (other, later)
    runs = [toy.mlflow()[f"{number:05d}"][0] for number in (0, 1)]
    assert {run.data.tags["end_state"] for run in runs} == {"completed"}
