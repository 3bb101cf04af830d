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
