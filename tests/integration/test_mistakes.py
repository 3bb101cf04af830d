"""The user's mistakes: one line, exit code 2, no traceback, nothing half-written."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SVHN = ROOT / "sweeps" / "svhn.py"


def svhn(*options, cwd, **env):
    return subprocess.run(
        [sys.executable, str(SVHN), *map(str, options)],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def refused(done):
    """The one line of an error, after checking that it is one."""
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--data-dir", "nowhere"], "nowhere"),
        (["--epochs", "0"], "--epochs"),
        (["--num-trials", "none"], "num-trials"),
        (["--no-such-option", "1"], "no-such-option"),
        (["--data", "mnist"], "mnist"),
        (["--width", "-1"], "--width"),
        (["--name", "a/b"], "--name"),
        (["--name", "new", "--resume"], "no sweep 'new'"),
        (["--tracking-uri", "http://127.0.0.1:9", "--data", "house-numbers"], "127.0.0.1:9"),
        (
            ["--output-dir", "/proc/runs", "--data", "house-numbers", "--train-size", "1500"],
            "/proc",
        ),
    ],
)
def test_mistakes(options, says, tmp_path):
    assert says in refused(svhn(*options, cwd=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_data_file(tmp_path):
    folder = tmp_path / "svhn"
    folder.mkdir()
    (folder / "train_32x32.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    work = tmp_path / "work"
    work.mkdir()
    assert "train_32x32.mat" in refused(svhn("--data-dir", folder, cwd=work))
    assert list(work.iterdir()) == []


@pytest.mark.slow
def test_a_name_in_use_and_two_drivers_at_once(toy):
    toy.env["TOY_SECONDS"] = "0.5"
    first = toy.start("--num-trials", "2")
    while not (toy.runs / "toy" / "optuna.journal").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    says = toy.run("--resume", expect=2)
    assert "is being run by process" in says and "Traceback" not in says
    out, err = first.communicate(timeout=120)
    assert first.returncode == 0, out + err
    says = toy.run(expect=2)
    assert "--resume" in says and "another --name" in says
    says = toy.run("--resume", "--epochs", "9", expect=2)
    assert "cannot change --epochs" in says


@pytest.mark.slow
def test_names_taken_elsewhere_are_seen_in_mlflow(toy):
    toy.run("--num-trials", "1")
    (toy.runs / "toy").rename(toy.runs / "moved")
    assert "has a sweep 'toy' already" in toy.run(expect=2)
