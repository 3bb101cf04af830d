"""The user's mistakes: one line, exit code 2, no traceback, nothing half-written."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.ali.data.conftest import write_mat
from tests.ali.data.test_cifar10 import write_batches
from tests.integration.harness import error_line, refused

SWEEPS = Path(__file__).parents[2] / "sweeps"
SVHN = SWEEPS / "svhn.py"


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The working folder, in which a refusal leaves nothing."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--data-dir", "nowhere"], "nowhere"),
        (["--epochs", "0"], "--epochs"),
        (["--num-trials", "none"], "num-trials"),
        (["--no-such-option", "1"], "no-such-option"),
        (["--data", "mnist"], "mnist"),
        (["--width", "-1"], "--width"),
        (["--model", "gan", "--levels", "2"], "--levels"),
        (["--name", "a/b"], "--name"),
        (["--name", "a?b"], "--name must not contain ?"),
        (["--name", "new", "--resume"], "no sweep 'new'"),
        (["--tracking-uri", "http://127.0.0.1:9", "--data", "house-numbers"], "127.0.0.1:9"),
        (
            ["--output-dir", "/proc/runs", "--data", "house-numbers", "--train-size", "1500"],
            "/proc: no such file or directory; choose another --output-dir",
        ),
        (["--data", "house-numbers", "--train-size", "1500", "--cpus-per-trial", "999"], "--cpus"),
        (
            ["--data=house-numbers", "--train-size=1500", "--batch-size=1000", "--vary-batch-size"],
            "--batch-size 2000",
        ),
        (["--output-dir", "s3://bucket/runs"], "--storage-path"),
        (["--storage-path", "/proc/kept"], "directory; choose another --storage-path"),
        (["--name", ".."], "--name"),
        (["--data", "house-numbers", "--space", "nowhere.toml"], "nowhere.toml"),
        (["--data", "house-numbers", "--objective", "fidelity"], "no metric 'fidelity'; it has"),
        (["--objective", "val_error +"], "--objective"),
        (["--objective", ""], "--objective"),
        (["--direction", "maximize"], "--direction"),
        (["--direction", "down", "--objective", "d_loss"], "direction"),
        (["--image-size", "64"], "--image-size has no effect with --data svhn: leave it out"),
        (["--model", "sdgm", "--bn-with-z"], "--bn-with-z has no effect with --model sdgm"),
    ],
)
def test_mistakes(work, options, says):
    assert says in refused(SVHN, *options)


@pytest.mark.parametrize(
    "name", ["svhn", "cifar10", "celeba", "tiny_imagenet", "mixture", "folder"]
)
def test_a_sweep_is_a_file_that_runs_wherever_it_is_copied(work, tmp_path, name):
    copy = shutil.copy(SWEEPS / f"{name}.py", tmp_path)
    assert "--epochs" in refused(copy, "--epochs", "0")


def test_a_folder_without_images(work, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    assert str(folder) in refused(SWEEPS / "folder.py", "--data-dir", folder)


@pytest.mark.parametrize(("data", "missing"), [("svhn", "y"), ("cifar10", "test_batch")])
def test_data_that_only_best_py_needs(work, tmp_path, data, missing):
    """Without it the sweep would end, and its best trial could not be tested."""
    folder, options = tmp_path / "data", ("--labels", "20", "--batch-size", "20", "--epochs", "1")
    if data == "svhn":
        write_mat(folder)
        write_mat(folder, "test", y=None)
    else:
        write_batches(folder)
        (folder / "test_batch").unlink()
    script = SWEEPS / f"{data}.py"
    assert missing in refused(script, "--data-dir", folder, *options, "--num-trials", "1")


def test_what_is_said_about_the_data_is_said_before_a_mistake(work, tmp_path, capsys):
    """`ali train` and sweeps/best.py say it, too."""
    for i in range(30):
        path = tmp_path / "images" / f"{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (i, 0, 0)).save(path)
    (tmp_path / "images" / "list.csv").write_text("")
    options = ["--labels", "4", "--batch-size", "4", "--warm-start", "nowhere"]
    said = refused(SWEEPS / "folder.py", "--data-dir", tmp_path / "images", *options)
    assert "--warm-start nowhere" in said
    told = capsys.readouterr().out
    assert "note: folder: 1 entries of" in told and "are ignored: list.csv\n" in told
    assert "note: folder: 3 of 30 images, chosen by a hash of their names, are held out" in told


def test_a_cluster_that_is_gone(work, tmp_path, monkeypatch):
    # Ray itself waits for minutes for the answer of a head that was killed.
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert "Ray cluster at 127.0.0.1:9" in refused(SVHN, "--data", "house-numbers")


def test_a_truncated_data_file(work, tmp_path):
    """As a process of its own: nothing else is on its stderr, from start to end."""
    folder = tmp_path / "svhn"
    folder.mkdir()
    (folder / "train_32x32.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    done = subprocess.run(
        [sys.executable, str(SVHN), "--data-dir", str(folder)],
        cwd=work,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "train_32x32.mat" in error_line(done.returncode, done.stderr)


@pytest.mark.slow
def test_a_name_in_use_two_drivers_at_once_and_what_a_resume_lacks(toy, monkeypatch, tmp_path):
    toy.env["TOY_SECONDS"] = "1"
    space = tmp_path / "space.toml"
    space.write_text("lr = {low = 1e-4, high = 1e-3}")
    first = toy.start("--num-trials", "2", "--space", str(space))
    while not (toy.runs / "toy" / "optuna.journal").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    assert f"is being run by process {first.pid} " in toy.refused("--resume")
    out, err = first.communicate(timeout=120)
    assert first.returncode == 0, out + err
    says = toy.refused()
    assert "--resume" in says and "another --name" in says
    assert "cannot change --epochs" in toy.refused("--resume", "--epochs", "9")
    assert "cannot change --objective" in toy.refused("--resume", "--objective", "d_loss")
    other = tmp_path / "other.toml"
    other.write_text("dropout = 0.1")
    says = toy.refused("--resume", "--space", str(other))
    assert "not that of sweep 'toy' so far (dropout_x not given, dropout_xz not given, …" in says
    assert "; now dropout_x 0.1, dropout_xz 0.1, …)" in says
    space.rename(other)  # a resume needs it no more
    monkeypatch.setenv("TOY_DATA", "changed")
    assert "(fingerprint toy, now changed)" in toy.refused("--resume")
    monkeypatch.delenv("TOY_DATA")
    journal = toy.runs / "toy" / "optuna.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole.replace(b"\n", b"\ngarbage\n", 1))
    assert f"{journal}, line 2: not JSON" in toy.refused("--resume")
    journal.unlink()
    other.rename(space)  # it was in there
    assert f"{journal} lacks 00000, 00001" in toy.refused("--resume")
    assert f"{journal} lacks 00000, 00001" in toy.refused(), "nor without --resume"
    for folder in (toy.runs / "toy").glob("0000?"):
        shutil.rmtree(folder)
    assert f"{journal} lacks 00000, 00001" in toy.refused("--resume"), "MLflow knows them"
    assert not journal.exists()
    # The folder of the sweep is gone, and its runs are not.
    (toy.runs / "toy").rename(toy.runs / "moved")
    assert "has a sweep 'toy' already" in toy.refused()
