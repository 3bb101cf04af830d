"""The real thing, small: a sweep, a replayed trial, the best trained in full and tested."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

import sweeps
from ali.config import Config
from tests.audit import read_tune

pytestmark = pytest.mark.versions

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("ALI_TEST_DATA", ROOT.parent / "shared" / "data")) / "svhn"
TINY = "--width 0.25 --train-size 600 --labels 100 --draws 1 --batch-size 50"
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
ONE_THREAD.pop("MLFLOW_TRACKING_URI", None)


def python(*arguments, cwd, expect=0):
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env=ONE_THREAD, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout


def new_folder(tmp_path_factory, database):
    """A working folder with an MLflow database in its place."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "runs").mkdir()
    shutil.copy(database, folder / "runs")
    return folder


@pytest.fixture
def folder(tmp_path_factory, database):
    return new_folder(tmp_path_factory, database)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A folder with a finished sweep of two trials in it; all of it is new."""
    folder = tmp_path_factory.mktemp("sweep")
    options = f"--name s --data house-numbers {TINY} --epochs 2 --num-trials 2 --grace-epochs 2"
    options += " --max-concurrent 1 --cpus-per-trial 1"
    out = python(ROOT / "sweeps" / "svhn.py", *options.split(), cwd=folder)
    told = " ".join(out.split())
    assert "sweeps/best.py --name s" in told and "once its batch norm has seen the data" in told
    return folder


def runs(folder, kind):
    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("ali").experiment_id
    return client, client.search_runs([experiment], f"tags.kind = '{kind}'")


@pytest.mark.slow
def test_trials_have_pictures_and_all_there_is_to_know(swept):
    client, found = runs(swept, "trial")
    assert len(found) == 2
    for run in found:
        assert {"val_error", "d_loss", "g_loss", "images_per_second", "epoch"} <= set(
            run.data.metrics
        )
        assert {"sample_distance", "sample_diversity", "sample_separation"} <= set(run.data.metrics)
        assert pictures(client, run) == {"samples", "reconstructions", "interpolations"}
        assert run.data.tags["data_fingerprint"]
        assert run.data.tags["compiled_layers"] in ("yes", "no") and run.data.tags["device"]
        assert run.data.tags["activations"] in ("bf16", "fp32")


@pytest.mark.slow
def test_it_is_read_from_python_to_its_networks(swept):
    found = sweeps.load("s", swept / "runs")
    frame, curves = found.dataframe(), found.curves()
    assert len(frame) == 2 and frame.val_error.is_monotonic_increasing
    assert (frame.seconds > 0).all() and frame.sample_diversity.notna().all()
    assert len(curves) == 4 and curves.notna().all().all()
    last = curves[curves.epoch == 2].set_index("trial_id")
    assert last.d_loss.to_dict() == frame.d_loss.to_dict()
    networks = found.best.networks()
    images = networks.sample(4)
    assert images.shape == (4, 32, 32, 3) and networks.encode(images).shape == (4, 256)
    assert networks.config == Config.from_dict(found.best.config) and networks.epoch == 2


@pytest.mark.slow
def test_a_trial_replays_from_what_was_logged(swept, tmp_path):
    """To the bit, in a process of its own: in the sweep another trial had run in it before."""
    first, second = (trial.process for _, trial in read_tune(swept / "runs" / "s"))
    assert first == second
    _, found = runs(swept, "trial")
    (run,) = [run for run in found if run.data.tags["trial_id"] == "00001"]
    (tmp_path / "config.json").write_text(run.data.tags["config"])
    python(
        *f"-m ali train --config {tmp_path}/config.json --output-dir {tmp_path}/out".split(),
        *f"--threads {run.data.tags['threads']}".split(),
        cwd=tmp_path,
    )
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    replayed = [json.loads(line) for line in lines]
    for metric in ("d_loss", "g_loss", "val_error", "sample_distance"):
        assert replayed[-1][metric] == run.data.metrics[metric], metric


@pytest.mark.slow
def test_the_best_is_trained_in_full_after_a_kill_too_and_tested_once(swept):
    best = ROOT / "sweeps" / "best.py"
    options = ["--name", "s", "--epochs", "6", "--svms", "5", "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, str(best), *options], cwd=swept, env=ONE_THREAD, stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not list((swept / "runs" / "s").glob("best-*/checkpoint/state.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()

    out = python(best, *options, cwd=swept)
    assert "continues from epoch" in out and "ALI" in out and "Not comparable" in out
    assert "testing with 5 SVMs" in out
    client, (run,) = runs(swept, "best")
    assert run.info.status == "FINISHED"
    assert 0 < run.data.metrics["test_error_mean"] < 1
    _, trials = runs(swept, "trial")
    chosen = min(trials, key=lambda trial: trial.data.metrics["val_error"])
    assert run.data.tags["best_of_run"] == chosen.info.run_id
    history = client.get_metric_history(run.info.run_id, "epoch")
    assert history[-1].step == 6 and len({m.step for m in history}) == len(history)
    (version,) = client.search_model_versions("name = 'ali-s'")
    assert version.run_id == run.info.run_id

    again = python(best, *options, cwd=swept)
    assert "testing with" not in again, "the test split is read once for a result"
    assert f"{run.data.metrics['test_error_mean']:.2%}".rstrip("%") in again


@pytest.mark.long
def test_the_best_is_trained_with_several_seeds_after_a_kill_too(swept, tmp_path):
    folder = shutil.copytree(swept, tmp_path / "copy", symlinks=True)
    best = ROOT / "sweeps" / "best.py"
    options = ["--name", "s", "--seeds", "2", "--svms", "3", "--threads", "1"]
    command = [sys.executable, str(best), *options]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, env=ONE_THREAD, stdout=pipe, text=True) as process:
        starts = 0
        for line in process.stdout:
            starts += line.startswith("starts from the beginning")
            if starts == 2 and line.startswith("epoch 1/"):
                process.kill()
    assert starts == 2

    out = python(best, *options, cwd=folder)
    assert out.count("testing with 3 SVMs") == 1, "the first seed had been tested before"
    client, trainings = runs(folder, "best")
    trainings = [run for run in trainings if "-seed" in run.data.tags["trial_id"]]
    seeds = {json.loads(run.data.tags["config"])["seed"] for run in trainings}
    _, trials = runs(folder, "trial")
    chosen = {json.loads(run.data.tags["config"])["seed"] for run in trials}
    assert len(seeds) == 2 and not seeds & chosen
    errors = [run.data.metrics["test_error_mean"] for run in trainings]
    (parent,) = runs(folder, "sweep")[1]
    told = f"{np.mean(errors):.4f} ± {np.std(errors, ddof=1):.4f}"
    assert told in out and abs(parent.data.metrics["test_error_mean_over_seeds"]) > 0
    lowest = min(trainings, key=lambda run: run.data.metrics["val_error"])
    versions = client.search_model_versions(f"run_id = '{lowest.info.run_id}'")
    assert len(versions) == 1
    again = python(best, *options, cwd=folder)
    assert told in again and "registered" not in again and "testing with" not in again


@pytest.mark.long
def test_workers_train_the_best_together_and_one_may_be_lost(swept):
    best = ROOT / "sweeps" / "best.py"
    options = ["--name", "s", "--epochs", "9", "--svms", "2", "--threads", "1", "--workers"]
    refused = subprocess.run(
        [sys.executable, str(best), *options, "3"], cwd=swept, capture_output=True, text=True
    )
    assert refused.returncode == 2 and "across 3 workers" in refused.stderr
    with subprocess.Popen(
        [sys.executable, str(best), *options, "2"],
        cwd=swept,
        env=ONE_THREAD,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        told, killed = [], None
        for line in process.stdout:
            told.append(line)
            if killed is None and line.startswith("epoch "):
                found = subprocess.check_output(["pgrep", "-f", "^ray::RayTrainWorker"])
                _, killed = map(int, found.split())
                os.kill(killed, signal.SIGKILL)
    assert process.returncode == 0 and killed, "".join(told)
    client, (run,) = runs(swept, "best")
    assert run.info.status == "FINISHED"
    assert 0 < run.data.metrics["test_error_mean"] < 1
    steps = [m.step for m in client.get_metric_history(run.info.run_id, "epoch")]
    assert steps[-1] == 9 and len(set(steps)) == len(steps)


def pictures(client, run):
    return {
        re.split("[+%]", Path(a.path).name)[0]
        for a in client.list_artifacts(run.info.run_id, "images")
    }


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason=f"no SVHN crops in {DATA}")
def test_a_sweep_on_real_svhn_crops(folder):
    options = f"--name real --data-dir {DATA} {TINY} --epochs 1 --num-trials 1"
    out = python(ROOT / "sweeps" / "svhn.py", *options.split(), cwd=folder)
    _, (run,) = runs(folder, "trial")
    assert run.data.metrics["val_error"] < 0.85
    assert json.loads(run.data.tags["config"])["data"] == "svhn"
    assert "00000" in out


@pytest.mark.long
def test_a_sweep_of_the_mixture_counts_modes(folder):
    options = "--num-trials 3 --epochs 3 --grace-epochs 3 --train-size 2000"
    out = python(ROOT / "sweeps" / "mixture.py", *options.split(), cwd=folder)
    assert "minimizing modes_missed" in out and "near modes" in out
    assert "raw pixels" not in out, "no baselines of val_error"
    client, trials = runs(folder, "trial")
    for run in trials:
        assert 0 <= run.data.metrics["modes_missed"] <= 9
        assert "val_error" not in run.data.metrics
        assert run.data.tags["objective"] == "modes_missed"
        assert pictures(client, run) == {"samples"}
        assert run.data.metrics["total_train_seconds"] < 20
    (paper,) = (run for run in trials if run.data.tags["trial_id"] == "00000")
    config = json.loads(paper.data.tags["config"])
    assert (config["dropout_xz"], config["bn_x"]) == (None, None), "the table's"
    assert "dropout_xz" not in paper.data.params and "lr_d" in paper.data.params

    out = python(ROOT / "sweeps" / "best.py", "--name", "mixture", "--threads", "1", cwd=folder)
    assert "test_modes_missed" in out and "Table 1" not in out
    _, (run,) = runs(folder, "best")
    assert run.data.metrics["test_near_modes"] >= 0
    best = min(trial.data.metrics["modes_missed"] for trial in trials)
    assert f"modes_missed {best:.4f}" in out


@pytest.mark.long
def test_images_of_ones_own_without_labels_are_swept(folder):
    """The objective is the samples' distance from the data, and the best trial's is tested."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(120):
        shade = rng.integers(0, 256, (1, 1, 3)) // 2 + rng.integers(0, 128, (40, 48, 3))
        Image.fromarray(shade.astype(np.uint8)).save(folder / "images" / f"{i}.png")
    options = "--name mine --data-dir images --width 0.1 --batch-size 30 --epochs 1 --num-trials 2"
    out = python(ROOT / "sweeps" / "folder.py", *options.split(), cwd=folder)
    assert "minimizing sample_distance" in out and "diversity" in out
    held_out = "note: folder: 12 of 120 images, chosen by a hash of their names, are held out"
    assert out.count(held_out) == 1
    client, trials = runs(folder, "trial")
    assert [run.data.tags["objective"] for run in trials] == ["sample_distance"] * 2
    for run in trials:
        assert run.data.metrics["sample_distance"] > 0 and "val_error" not in run.data.metrics
        assert pictures(client, run) == {"samples", "reconstructions", "interpolations"}

    for run in trials:  # as if they had collapsed
        client.log_metric(run.info.run_id, "sample_diversity", 0.05, step=2)
    out = python(ROOT / "sweeps" / "best.py", "--name", "mine", "--threads", "1", cwd=folder)
    assert "samples have collapsed" in out and "test_sample_distance" in out
    assert out.count(held_out) == 1
    assert "collapsed" in python(ROOT / "sweeps" / "report.py", "--name", "mine", cwd=folder)
    _, (run,) = runs(folder, "best")
    assert run.info.status == "FINISHED" and run.data.metrics["test_sample_distance"] > 0


def test_best_of_nothing_is_a_clear_error(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "sweeps" / "best.py"), "--name", "none"],
        cwd=tmp_path,
        env=ONE_THREAD,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert list(tmp_path.iterdir()) == []
