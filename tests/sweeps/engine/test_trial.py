"""The trial class in this process: results, endings, checkpoints, the next trial of a worker."""

import contextlib
import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ray import tune
from ray.tune.result import DONE

from ali.config import Config
from ali.errors import NonFiniteError, UserError
from ali.history import METRICS, read_history
from ali.metrics import EPOCH, VAL_ERROR
from sweeps.engine import gpus, ray_compat
from sweeps.engine import trial as module
from sweeps.engine.endings import Ending, EndState
from sweeps.engine.experiment import Experiment
from sweeps.engine.retry import Retry
from sweeps.engine.scheduler import HISTORY
from sweeps.engine.tracking import TrackingContext
from sweeps.engine.trial import SweepTrial, TrialContext


class State:
    def __init__(self, epoch):
        self.epoch = epoch

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "epoch.json").write_text(json.dumps(self.epoch))


class Counting(Experiment):
    """Counts epochs; raises `error` after `good` of them, or has `broken` down."""

    def __init__(self, error=None, good=99, broken=None):
        self.error, self.good, self.loads, self.broken = error, good, 0, broken

    def load_data(self, config):
        self.loads += 1
        return f"data {self.loads}"

    def objective(self, config, dataset):
        return VAL_ERROR

    def fingerprint(self, dataset):
        return dataset

    def facts(self, config):
        return {"compiled_layers": "no"}

    def run(self, config, dataset, state):
        for epoch in range(state.epoch + 1 if state else 1, config.epochs + 1):
            if epoch > self.good:
                raise self.error
            yield State(epoch), {EPOCH: epoch, VAL_ERROR: 1 / epoch, "train_seconds": 2.0}

    def breakdown(self, history):
        return self.broken if history[-1][EPOCH] == self.good else None

    def load_state(self, folder, config):
        try:
            return State(json.loads((folder / "epoch.json").read_text()))
        except (OSError, ValueError) as error:
            raise UserError(f"damaged: {error}") from error


@pytest.fixture
def logged(monkeypatch):
    """What trials log, in place of MLflow: (trial id, metrics)."""
    records = []

    class Queue:
        def flush(self, timeout):
            return True

        def flush_files(self, timeout):
            records.append({"delivered": sum("traceback.txt" in record for record in records)})
            return True

        finish = close = lambda self: None
        ended = True

    class Run:
        def __init__(self, to, trial_id, params, outage_seconds, tags):
            self.queue, self.params, self.tags = Queue(), params, tags

        def epoch(self, metrics, images):
            records.append(metrics)

        def pictures(self, epoch, images):
            records.append({"pictures": (epoch, images)})

        def tell_missing(self):
            """Nothing is missing."""

        def text(self, text, file):
            if file != "config.json":
                records.append({file: text})

    monkeypatch.setattr(module, "TrialRun", Run)
    return records


def started(
    experiment, epochs=3, data="data 1", data_dir=None, outage_seconds=1.0, gpus=0.0, **config
):
    to = TrackingContext("", "", "s", "", VAL_ERROR)
    context = TrialContext(experiment, to, 9, 2, gpus, outage_seconds, data, data_dir)
    trial = SweepTrial.__new__(SweepTrial)
    trial.__dict__.update(_trial_info=None, _storage=None, _last_result={})
    trial.setup(Config(epochs=epochs, **config).to_dict(), context)
    return trial


def test_a_part_of_a_gpu_with_too_little_memory_ends_a_trial_at_once(logged, monkeypatch):
    class Large(Counting):
        def gpu_memory(self, config, dataset):
            return 5 * 2**30

    device = SimpleNamespace(total_memory=16 * 2**30)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda number: device)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(gpus, "join", lambda part: False)
    result = started(Large(), gpus=0.25).step()
    assert result["done"] and not any(EPOCH in record for record in logged)
    assert "5.0 GiB" in str(result) and "has 4.0 GiB: raise --gpus-per-trial" in str(result)
    enough = started(Large(), gpus=0.5)
    assert enough.step()["epoch"] == 1
    assert (enough._opened.tags["gpus"], enough._opened.tags["mps"]) == ("0.5", "no")


def test_a_step_is_an_epoch_and_totals_add_up(logged):
    trial = started(Counting())
    results = [trial.step() for _ in range(3)]
    assert [result["done"] for result in results] == [False, False, True]
    assert [result["total_train_seconds"] for result in results] == [2, 4, 6]
    assert results[-1]["total_core_seconds"] == 12, "two threads"
    assert [metrics[EPOCH] for metrics in logged] == [1, 2, 3]


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (NonFiniteError(7, ("d_loss",)), Ending(EndState.DIVERGED, "non-finite d_loss at step 7")),
        (MemoryError(), Ending(EndState.OUT_OF_MEMORY, "MemoryError")),
        (RuntimeError("a bug"), Ending(EndState.FAILED, "RuntimeError: a bug")),
    ],
)
def test_an_error_is_an_ending_and_no_restart(logged, error, ending):
    trial = started(Counting(error, good=1))
    trial.step()
    result = trial.step()
    assert result["done"] and Ending.from_result(result) == ending
    failed = ending.state is EndState.FAILED
    assert any("traceback.txt" in record for record in logged) == failed
    # A worker's next trial may kill the process: a traceback is delivered before.
    assert ({"delivered": 1} in logged) == failed


class Odd(Counting):
    """Reports a metric of its own."""

    def __init__(self, name, value):
        super().__init__()
        self.metric = {name: value}

    def run(self, config, dataset, state):
        for made, metrics in super().run(config, dataset, state):
            yield made, metrics | self.metric


def test_a_metric_that_mlflow_refuses_fails_the_trial_at_once_with_its_name(logged):
    result = started(Odd("hits@10", 0.5)).step()
    assert result["end_state"] == "failed" and "no metric called 'hits@10'" in result["end_reason"]


def test_numbers_of_numpy_are_numbers(logged, tmp_path):
    trial = started(Odd("score", np.float32(0.5)))
    assert trial.step()["score"] == 0.5
    trial.save_checkpoint(str(tmp_path))
    assert read_history(tmp_path)[0]["score"] == 0.5


def test_a_state_that_cannot_be_saved_fails_its_trial(logged, tmp_path, monkeypatch):
    def save(self, folder):
        raise RuntimeError("no way to save this")

    monkeypatch.setattr(State, "save", save)
    trial = started(Counting())
    trial.step()
    monkeypatch.setattr(
        tune.Trainable, "save", lambda self, folder=None: self.save_checkpoint(str(tmp_path))
    )
    monkeypatch.setattr(ray_compat, "result_without_checkpoint", lambda trial: None)
    trial.save()
    result = trial.step()
    assert result["end_reason"] == "RuntimeError: no way to save this" and result[DONE]


def test_a_trial_that_broke_down_ends_after_that_epochs_result(logged, tmp_path):
    collapsed = Ending(EndState.COLLAPSED, "all the same")
    trial = started(Counting(good=2, broken=collapsed))
    assert [trial.step()[EPOCH] for _ in range(2)] == [1, 2]
    trial.save_checkpoint(str(tmp_path))
    result = trial.step()
    assert result["done"] and Ending.from_result(result) == collapsed and VAL_ERROR not in result
    again = started(Counting(good=2, broken=collapsed))
    again.load_checkpoint(str(tmp_path))
    assert Ending.from_result(again.step()) == collapsed, "after a restart, too"
    whole = started(Counting(good=3, broken=collapsed))
    assert [whole.step()["done"] for _ in range(3)] == [False, False, True], (
        "nothing is left to save"
    )


def test_a_checkpoint_restores_state_totals_and_what_the_search_may_not_know(logged, tmp_path):
    first = started(Counting())
    first.step(), first.step()
    first.save_checkpoint(str(tmp_path))
    again = started(Counting())
    again.load_checkpoint(str(tmp_path))
    result = again.step()
    assert result[EPOCH] == 3 and result["total_train_seconds"] == 6
    assert result[HISTORY] == [(1, 1.0), (2, 0.5)]
    assert HISTORY not in again.step(), "told once"


def test_a_trial_restored_after_its_last_epoch_says_so_again(logged, tmp_path):
    first = started(Counting(), epochs=1)
    last = first.step()
    first.save_checkpoint(str(tmp_path))
    again = started(Counting(), epochs=1)
    again.load_checkpoint(str(tmp_path))
    assert {k: v for k, v in again.step().items() if k != HISTORY} == last


@pytest.mark.parametrize("file", [METRICS, "epoch.json"])
def test_a_damaged_checkpoint_is_not_used(logged, tmp_path, file):
    first = started(Counting())
    first.step()
    first.save_checkpoint(str(tmp_path))
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:-3] + b"###")
    again = started(Counting())
    again.load_checkpoint(str(tmp_path))
    assert again.step()[EPOCH] == 1


def test_every_damaged_byte_of_the_metrics_is_noticed(logged, tmp_path):
    first = started(Counting())
    first.step()
    first.save_checkpoint(str(tmp_path))
    path = tmp_path / METRICS
    whole, history = path.read_bytes(), read_history(tmp_path)
    for index in range(len(whole)):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 1]) + whole[index + 1 :])
        with contextlib.suppress(UserError):
            assert read_history(tmp_path) == history


def test_a_checkpoint_of_the_version_before_is_read(logged, tmp_path):
    """State in a folder of its own, metrics without a checksum, checksums in sums.json."""
    State(2).save(tmp_path / "state")
    history = [{EPOCH: epoch, VAL_ERROR: 1 / epoch} for epoch in (1, 2)]
    (tmp_path / METRICS).write_text(json.dumps(history))
    (tmp_path / "sums.json").write_text("{}")
    trial = started(Counting())
    trial.load_checkpoint(str(tmp_path))
    assert trial.step()[EPOCH] == 3


def test_data_that_are_gone_for_a_while_cost_a_trial_time(logged, monkeypatch):
    """A mount that is lost, on the machine of the next worker, would fail all trials in seconds."""
    monkeypatch.setattr(Retry, "_pause", lambda *_: None)
    load, tries = Counting.load_data, []

    def gone(self, config):
        tries.append(config)
        if len(tries) < 3:
            raise UserError("--data-dir is not a folder")
        return load(self, config)

    monkeypatch.setattr(Counting, "load_data", gone)
    assert started(Counting(), outage_seconds=60).step()[EPOCH] == 1 and len(tries) == 3
    tries.clear()
    ended = started(Counting(), outage_seconds=0).step()
    assert ended["end_state"] == "failed" and "is not a folder" in ended["end_reason"]


def test_a_storage_that_is_silent_costs_a_trial_a_small_part_of_its_time(logged, monkeypatch):
    tries = []

    def hang(self, checkpoint_dir=None):
        tries.append(checkpoint_dir)
        time.sleep(0.1)
        raise OSError("no answer")

    monkeypatch.setattr(tune.Trainable, "save", hang)
    trial = started(Counting())
    trial.step()
    for _ in range(3):
        assert trial.save().checkpoint is None
    assert len(tries) == 1, "the next is tried after five times as long"
    time.sleep(max(0.0, trial._next_save - time.monotonic()))
    trial.save()
    assert len(tries) == 2


def test_the_next_trial_of_a_worker_starts_clean_and_keeps_the_data(logged):
    experiment = Counting()
    trial = started(experiment)
    for _ in range(3):
        trial.step()
    assert trial.reset_config(Config(epochs=2, seed=5).to_dict())
    result = trial.step()
    assert (result[EPOCH], result["total_train_seconds"]) == (1, 2)
    assert experiment.loads == 1 and trial._opened.params["seed"] == 5
    assert trial._runs == [trial._opened], "what the trial before had logged is let go"
    assert trial._opened.tags["data_fingerprint"] == "data 1"
    assert trial._opened.tags["compiled_layers"] == "no"


def test_data_that_cannot_be_loaded_fails_the_trial_and_not_the_worker(logged):
    class Missing(Counting):
        def load_data(self, config):
            raise UserError("no files")

    result = started(Missing()).step()
    assert Ending.from_result(result) == Ending(EndState.FAILED, "UserError: no files")


def test_a_restore_waits_for_the_bucket_and_for_nothing_else(logged, monkeypatch):
    errors = [FileNotFoundError("it is gone"), OSError("no route to the bucket")]

    def restore(self, checkpoint):
        if errors:
            raise errors.pop()

    monkeypatch.setattr(module.tune.Trainable, "restore", restore)
    with pytest.raises(FileNotFoundError):
        started(Counting()).restore("checkpoint")
    assert not errors


def test_other_data_than_the_sweeps_ends_the_trial(logged):
    """Files changed since the sweep began, or a machine has others."""
    ending = Ending.from_result(started(Counting(), data="data 0").step())
    assert ending.state is EndState.FAILED and "fingerprint data 1, not data 0" in ending.reason
    assert logged == []


def test_a_trial_drawn_before_the_data_was_moved_finds_it(logged):
    """A resume may change --data-dir, but not the configurations that are in the journal."""
    trial = started(Counting(), data_dir="/now")
    for _ in range(2):
        assert trial._experiment_config.data_dir == Path("/now")
        assert trial.reset_config(Config(data_dir=Path("/before")).to_dict())


def test_a_new_trial_has_pictures_before_its_first_epoch_and_a_resumed_one_has_not(
    logged, tmp_path
):
    """MLflow's slider of steps starts at 0."""

    class Pictured(Counting):
        def initial_state(self, config, dataset):
            return State(0)

        def pictures(self, state, config, dataset):
            return {"samples": state.epoch}

    first = started(Pictured())
    assert first.step()[EPOCH] == 1 and logged[0] == {"pictures": (0, {"samples": 0})}
    first.save_checkpoint(str(tmp_path))
    logged.clear()
    again = started(Pictured())
    again.load_checkpoint(str(tmp_path))
    assert again.step()[EPOCH] == 2 and not any("pictures" in record for record in logged)
