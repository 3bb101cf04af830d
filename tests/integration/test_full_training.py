"""Full trainings of a sweep's best trial, called again: what was registered, tested, and is kept.

The sweep is one that MLflow knows of, with a trial of the mixture: training takes a second.
"""

import json
import shutil
import signal
import threading

import mlflow.pyfunc
import numpy as np
import pytest
from mlflow import MlflowClient

from ali import data, experiment
from ali.config import Config
from ali.data import mixture
from ali.errors import NonFiniteError, UserError
from ali.evaluation import quality
from ali.training.state import State
from sweeps.engine import full_training, tracking, workers
from sweeps.engine.endings import Ending, EndState
from sweeps.engine.final import FinalOptions, train_best
from sweeps.engine.full_training import FullTraining
from sweeps.engine.retry import Retry
from sweeps.engine.tracking.queue import AsyncLogQueue
from sweeps.engine.tracking.trial_run import TrialRun
from tests.integration.harness import Server, image

CONFIG = Config(data="mixture", train_size=1000, batch_size=250, labels=90, epochs=2)


class Best:
    """A sweep in a folder, and `best.py` on it."""

    def __init__(self, folder, uri=None):
        self.folder, self.uri = folder, uri
        uri = uri or tracking.default_uri(folder)
        self.client = tracking.connect(uri)
        self.experiment = tracking.experiment_id(self.client, folder)
        name = "modes_missed"
        parent = tracking.start_sweep(self.client, self.experiment, "s", name, {})
        to = tracking.TrackingContext(uri, self.experiment, "s", parent, name)
        trial = tracking.create_trial(self.client, to, "00000", config=CONFIG.to_dict())
        self.client.log_metric(trial.info.run_id, name, 9.0, step=2)
        self.client.log_param(trial.info.run_id, "data_fingerprint", data.load(CONFIG).fingerprint)
        tracking.end_run(self.client, trial.info.run_id, Ending(EndState.COMPLETED, ""))
        tracking.set_best_trials(self.client, to, ["00000"])

    def keep_checkpoint(self):
        """The trial's, after its last epoch."""
        for state, _ in experiment.run(CONFIG):
            state.save(self.folder / "s" / "00000" / "checkpoint_000001")

    def train(self, **options):
        options = {"svms": 1, "threads": 1, "tracking_uri": self.uri, **options}
        assert train_best(FinalOptions(name="s", output_dir=self.folder, **options)) == 0

    def runs(self):
        return tracking.find_runs(self.client, self.experiment, kind="best")

    def trial(self):
        (run,) = tracking.find_runs(self.client, self.experiment, kind="trial")
        return run.info.run_id

    def aliases(self):
        found = self.client.get_registered_model("ali-s").aliases
        return {name: int(version) for name, version in found.items()}

    def models(self):
        """{version: (run, epoch of the checkpoint in it, its files' contents)}."""
        found = {}
        for version in self.client.search_model_versions("name = 'ali-s'"):
            folder = self.folder / "artifacts" / version.source.split("/artifacts/", 1)[1]
            folder = folder / "artifacts" / "checkpoint"  # of the model, in MLflow's layout
            epoch = json.loads((folder / "state.json").read_text())["epoch"]
            files = {path.name: path.read_bytes() for path in folder.iterdir()}
            found[int(version.version)] = version.run_id, epoch, files
        return found


@pytest.fixture
def quick(monkeypatch):
    """Data so small that a full training takes a second."""
    monkeypatch.setattr(mixture, "SIZES", {"train": 1000, "valid": 500, "test": 500})
    monkeypatch.setattr(quality, "POINTS", 500)
    monkeypatch.setattr(full_training.AliExperiment, "pictures", lambda *_: {})  # a second each
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def best(tmp_path, database, quick):
    shutil.copy(database, tmp_path)
    return Best(tmp_path)


def test_more_epochs_are_another_version_and_fewer_are_refused(best):
    best.train(epochs=3)
    first = best.models()
    best.train(epochs=5)
    assert best.models()[1] == first[1] and [m[1] for m in best.models().values()] == [5, 3]
    (run,) = best.runs()
    before, kept = best.models(), sorted((best.folder / "s" / "best-00000").rglob("*"))
    for fewer in ({"epochs": 4}, {}):
        with pytest.raises(UserError, match="--epochs 5"):
            best.train(**fewer)
    assert best.models() == before
    assert sorted((best.folder / "s" / "best-00000").rglob("*")) == kept
    (again,) = best.runs()
    assert again.to_dictionary() == run.to_dictionary()
    best.train(epochs=5)
    assert best.models() == before


def test_another_trial_than_the_best_can_be_trained(best):
    parent = tracking.find_sweep(best.client, best.experiment, "s").info.run_id
    uri = tracking.default_uri(best.folder)
    to = tracking.TrackingContext(uri, best.experiment, "s", parent, "modes_missed")
    other = tracking.create_trial(best.client, to, "00007", config=CONFIG.to_dict())
    with pytest.raises(UserError, match="--trial 00007: no such trial of sweep 's' has completed"):
        best.train(trial=7)
    fingerprint = data.load(CONFIG).fingerprint
    best.client.log_param(other.info.run_id, "data_fingerprint", fingerprint)
    best.client.log_metric(other.info.run_id, "modes_missed", 9.0, step=2)
    tracking.end_run(best.client, other.info.run_id, Ending(EndState.COMPLETED, ""))
    best.train(trial=7)
    assert (best.folder / "s" / "best-00007").is_dir()
    assert not (best.folder / "s" / "best-00000").exists()


class Killed(BaseException):
    """In place of a kill: nothing happens after it, and MLflow is told of no end."""


# What a full training does after the checkpoint of its last epoch, one after the other.
END = [
    (TrialRun, "epoch"),
    (AsyncLogQueue, "flush"),
    (State, "save"),
    (full_training, "test_metrics"),
    (MlflowClient, "set_tag"),  # tested
    (MlflowClient, "create_registered_model"),
    (MlflowClient, "log_artifacts"),
    (MlflowClient, "create_model_version"),
    (MlflowClient, "set_terminated"),
]


@pytest.mark.parametrize("epochs", [CONFIG.epochs, 3])
def test_killed_at_its_end_a_resume_finishes_what_is_missing(best, epochs, monkeypatch, capsys):
    """Whether the last epoch is in the trial's own checkpoint, or was trained after a first end."""
    best.keep_checkpoint()
    if epochs > CONFIG.epochs:
        best.train()
    earlier, tested = best.models(), 0
    capsys.readouterr()
    for owner, name in END:

        def kill(*_, **__):
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(full_training.FullTraining, "_stopped", lambda *_: None)
            patch.setattr(owner, name, kill)
            with pytest.raises(Killed):
                best.train(epochs=epochs)
        tested += capsys.readouterr().out.count("testing")
        (run,) = best.runs()
        assert run.info.status == "RUNNING", (name, "FINISHED is what has a model")
        assert len(best.models()) == len(earlier) + (name == "set_terminated")
    best.train(epochs=epochs)
    (run,), (last, *before) = best.runs(), best.models().values()
    assert run.info.status == "FINISHED" and tested == 1, "the test split is read once"
    assert last[:2] == (run.info.run_id, epochs) and before == list(earlier.values())
    assert {"modes_missed", "test_modes_missed"} <= run.data.metrics.keys()
    assert run.data.metrics["epoch"] == epochs


def loses_an_answer(name, lost):
    """The method of MLflow's client that does what it is asked, and fails once."""
    call = getattr(MlflowClient, name)

    def cut(*arguments, **options):
        answer = call(*arguments, **options)
        if name not in lost:
            lost.append(name)
            raise ConnectionError("the network went away")
        return answer

    return cut


def test_an_mlflow_that_is_away_at_each_of_its_calls_costs_nothing(best, monkeypatch, capsys):
    """Its answer to the first call of each kind is lost; what was asked it has done."""
    lost, checked, check = [], [], FullTraining.check_resumable
    monkeypatch.setattr(Retry, "_pause", lambda *_: None)
    monkeypatch.setattr(FullTraining, "check_resumable", lambda it: checked.append(it) or check(it))
    for name in ("search_runs", "get_run", "log_batch", "log_text", "set_tag", "log_artifacts",
                 "create_registered_model", "create_model_version", "set_terminated"):  # fmt: skip
        monkeypatch.setattr(MlflowClient, name, loses_an_answer(name, lost))
    best.train(epochs=3)
    assert len(lost) == 9 and len(checked) == 1
    (run,) = best.runs()
    assert run.info.status == "FINISHED" and "test_modes_missed" in run.data.metrics
    assert [m.step for m in best.client.get_metric_history(run.info.run_id, "epoch")] == [1, 2, 3]
    assert list(best.models()) == [1] and best.aliases() == {"champion": 1}
    assert capsys.readouterr().out.count("testing") == 1


@pytest.mark.long
def test_a_full_training_outlives_its_server(tmp_path, quick, monkeypatch, capsys):
    server = Server(tmp_path)
    server.start()
    best, end_epoch = Best(tmp_path, server.uri), FullTraining._end_epoch

    def stop_after_the_first(self, state, metrics):
        end_epoch(self, state, metrics)
        if state.epoch == 1:
            server.stop()

    with monkeypatch.context() as patch, pytest.raises(UserError, match="run the same command"):
        patch.setattr(FullTraining, "_end_epoch", stop_after_the_first)
        best.train(epochs=3, outage_seconds=1)
    assert "epoch 3/3" in capsys.readouterr().out, "it was trained to its end"
    with pytest.raises(UserError, match="no MLflow server answers"):
        best.train(epochs=3)
    server.start()
    test, starting = full_training.test_metrics, threading.Timer(5, server.start)

    def stop_and_start(*arguments):
        server.stop()
        starting.start()
        return test(*arguments)

    monkeypatch.setattr(full_training, "test_metrics", stop_and_start)
    try:
        best.train(epochs=3)
        starting.join()
        (run,) = best.runs()
        assert run.info.status == "FINISHED" and "test_modes_missed" in run.data.metrics
        logged = best.client.get_metric_history(run.info.run_id, "d_loss")
        assert sorted(metric.step for metric in logged) == [1, 2, 3]
        assert best.aliases() == {"champion": 1}
    finally:
        server.stop()


def test_workers_may_be_lost_any_number_of_times_while_there_is_progress(best, monkeypatch):
    """In place of Ray Train, which gives up after so many losses."""
    calls, checkpoint = [], best.folder / "s" / "best-00000" / "checkpoint"

    def train(*_):
        calls.append(len(calls) + 1)
        if calls[-1] <= 3:
            for state, _ in experiment.run(CONFIG.replace(epochs=calls[-1])):
                state.save(checkpoint)
        if calls[-1] != 3:
            raise RuntimeError("the last worker was lost")

    monkeypatch.setattr(workers, "train_on_workers", train)
    best.train(epochs=3, workers=2)
    assert calls == [1, 2, 3]
    with pytest.raises(RuntimeError, match="last worker"):
        best.train(epochs=4, workers=2)
    assert calls == [1, 2, 3, 4]


def test_pictures_that_the_workers_lost_are_still_told_at_the_end(best, monkeypatch, capsys):
    """In place of Ray Train. The driver has opened the run before, and writes to it at the end."""
    told, end_epoch = [], FullTraining._end_epoch

    def lose(*_):
        raise ConnectionError("the artifact store is full")

    def diverge(self, state, metrics):
        end_epoch(self, state, metrics)
        if state.epoch == 2:
            raise NonFiniteError(8, ("d_loss",))

    def train(worker, config, *_):
        with monkeypatch.context() as patch:
            patch.setattr(full_training.AliExperiment, "pictures", lambda *_: image())
            patch.setattr(TrialRun, "_log_pictures", lose)
            with monkeypatch.context() as at_first:
                at_first.setattr(FullTraining, "_end_epoch", diverge)
                assert isinstance(worker(config), NonFiniteError)
            told.append(tracking.lost_records(best.runs()))
            assert worker(config) is None

    monkeypatch.setattr(workers, "train_on_workers", train)
    best.train(epochs=3, workers=2, outage_seconds=0)
    assert told[0].endswith("it lacks pictures of 00000 (2 epochs)")
    all_of_them = "it lacks pictures of 00000 (3 epochs)"
    assert f"{all_of_them}\n" in capsys.readouterr().out
    best.train(epochs=3)
    assert tracking.lost_records(best.runs()).endswith(all_of_them)


def test_several_seeds_load_the_data_once_and_are_refused_together(best, monkeypatch, capsys):
    loaded, load, test = [], data.load, full_training.test_metrics

    def delete_and_test(*arguments):
        best.client.delete_experiment(best.experiment)  # as somebody may meanwhile
        return test(*arguments)

    monkeypatch.setattr(full_training, "test_metrics", delete_and_test)
    monkeypatch.setattr(data, "load", lambda config: loaded.append(config) or load(config))
    best.train(seeds=2)
    assert len(loaded) == 1 and len(best.models()) == 1
    assert [run.info.status for run in best.runs()] == ["FINISHED"] * 2
    capsys.readouterr()
    with pytest.raises(UserError, match="-seed1000000 has 2 epochs"):
        best.train(seeds=3, epochs=1)
    assert "epoch" not in capsys.readouterr().out, "no other is trained before"
    assert not list((best.folder / "s").glob("*-seed3000000")), "nothing is left of what began not"


def test_a_training_is_not_continued_on_other_data(best):
    best.train()
    before = best.models()
    mixture.SIZES["train"] = 1200
    with pytest.raises(UserError, match=r"other data .*delete its MLflow run"):
        best.train(epochs=3)
    assert best.models() == before
    shutil.move(best.folder / "s" / "best-00000", best.folder / "s" / "moved")
    best.client.delete_run(best.runs()[0].info.run_id)
    best.train(epochs=3)  # anew, as it was told to
    assert len(best.models()) == 2 and best.models()[1] == before[1]


def test_the_champion_is_loaded_with_a_copy_of_the_library_and_no_pickle(best):
    """Encodings, and by parameters reconstructions and samples; registered with all it says."""
    best.train()
    assert best.aliases() == {"champion": 1}
    assert "@champion" in best.client.get_registered_model("ali-s").description
    version = best.client.get_model_version_by_alias("ali-s", "champion")
    assert "2 epochs on mixture" in version.description
    assert {"sweep", "trial_id", "epoch", "test_modes_missed"} <= version.tags.keys()
    folder = best.folder / "artifacts" / version.source.split("/artifacts/", 1)[1]
    names = {path.name for path in folder.rglob("*")}
    assert "config.py" in names and not [name for name in names if name.endswith(".pkl")]
    loaded = mlflow.pyfunc.load_model(str(folder))
    points = data.load(CONFIG).valid.x[:5]
    encoded = loaded.predict(points)
    assert encoded.shape == (5, 2) and np.isfinite(encoded).all()
    for output in ("reconstructions", "samples"):
        made = [loaded.predict(points, {"output": output, "seed": seed}) for seed in (0, 0, 1)]
        assert made[0].shape == points.shape and made[0].dtype == points.dtype
        assert (made[0] == made[1]).all() and (made[0] != made[2]).any()
    with pytest.raises(ValueError, match="encodings, reconstructions, samples"):
        loaded.predict(points, {"output": "labels"})
    assert loaded.metadata.signature.params and loaded.input_example.shape == (2, 1, 1, 2)


def test_a_models_alias_that_a_kill_kept_is_set_by_the_next_call(best):
    best.train()
    best.client.delete_registered_model_alias("ali-s", "champion")
    best.train()
    assert best.aliases() == {"champion": 1}


def test_a_training_that_goes_on_has_the_trials_curve_and_its_result_as_a_description(best):
    best.keep_checkpoint()
    trial = best.trial()
    for epoch, value in ((1, 8.0), (2, 7.0)):
        best.client.log_metric(trial, "modes_missed", value, step=epoch)
        best.client.log_metric(trial, "epoch", epoch, step=epoch)
    best.train(epochs=3)
    (run,) = best.runs()
    history = best.client.get_metric_history(run.info.run_id, "modes_missed")
    assert [m.step for m in history] == [1, 2, 3] and [m.value for m in history][:2] == [8.0, 7.0]
    assert "| test_modes_missed |" in run.data.tags["mlflow.note.content"]
    files = [a.path for a in best.client.list_artifacts(run.info.run_id)]
    assert {"config.json", "mlflow_model_000003"} <= set(files)
