"""`python -m ali train` across real processes: what a user meets, mistakes included."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from ali.cli import train
from ali.config import Config
from ali.environment import cache_dir
from ali.errors import UserError
from ali.lock import LockedError, folder_lock
from ali.training.checkpoint import read_manifest
from tests.ali.cli.commands import TINY, ali, contents, epochs, here, mistake

POINTS = ["--width", "0.1", "--batch-size", "20", "--threads", "1"]  # of the mixture: no labels


def test_train_writes_a_run(trained):
    folder, out = trained
    assert epochs(folder) == [1, 2]
    assert Config.from_dict(json.loads((folder / "config.json").read_text())).epochs == 2
    assert (folder / "checkpoint" / "state.json").exists()
    assert Image.open(folder / "samples-0002.png").size == (342, 342)
    assert Image.open(folder / "reconstructions-0002.png").size[1] > 34
    assert Image.open(folder / "interpolations-0002.png").size == (2 + 12 * 34, 2 + 7 * 34)
    lines = [line for line in out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2 and "val_error" in lines[0] and "images/s" in lines[0]


@pytest.mark.slow
def test_resumed_run_equals_an_uninterrupted_one(trained, tmp_path, data):
    whole, _ = trained
    part = tmp_path / "part"
    ali("train", "--output-dir", part, "--epochs", 1, *TINY, *data)
    # as a kill between log and checkpoint leaves it: one line too many, and half a line
    with open(part / "metrics.jsonl", "a") as log:
        log.write('{"epoch": 2, "d_loss": 0}\n{"epo')
    ali("train", "--output-dir", part, "--resume", "--epochs", 2)
    assert epochs(part) == [1, 2]

    def weights(folder):
        return json.loads((folder / "checkpoint/state.json").read_text())["files"]

    assert weights(part) == weights(whole)  # names and checksums of weights and moments


def test_a_resume_on_other_data_is_refused(trained, tmp_path):
    part = tmp_path / "part"
    shutil.copytree(trained[0], part)
    (part / "data_fingerprint.txt").write_text("0123")
    before = contents(part)
    with pytest.raises(UserError, match=r"not that of the run .*0123, now .*--data-dir"):
        here("train", "--output-dir", part, "--resume", "--epochs", 3)
    assert contents(part) == before


def test_one_training_at_a_time_has_a_folder(trained, tmp_path, data):
    """Two removed each other's files, and the only checkpoint with them."""
    part, new = tmp_path / "part", tmp_path / "new"
    shutil.copytree(trained[0], part)
    new.mkdir()
    for folder, options in ((part, ["--resume", "--epochs", 3]), (new, [*TINY, *data])):
        with folder_lock(folder, "another"):
            before = contents(folder)
            with pytest.raises(LockedError, match="is being run by process"):
                here("train", "--output-dir", folder, *options)
            assert contents(folder) == before


def test_a_damaged_line_of_the_log_costs_that_line_alone(trained, tmp_path):
    part = tmp_path / "part"
    shutil.copytree(trained[0], part)
    lines = (part / "metrics.jsonl").read_bytes().splitlines()
    (part / "metrics.jsonl").write_bytes(b"\n".join([b"\xff{", *lines, b'{"epo']))
    out, _ = ali("train", "--output-dir", part, "--resume")
    assert epochs(part) == [1, 2] and "metrics.jsonl, line 1: damaged" in out


def test_a_resume_takes_no_other_settings(trained, tmp_path):
    mistake(
        *(tmp_path, "train", "--resume", "--output-dir", trained[0], "--config", "own.yaml"),
        says="leave --config out",
    )


def test_a_value_in_a_file_is_refused_with_its_line(tmp_path):
    (tmp_path / "own.yaml").write_text("epochs: 3\nwidth: 0\n")
    with pytest.raises(UserError, match=r"own\.yaml, line 2: width must be in \(0, 8\]"):
        here("train", "--output-dir", tmp_path / "run", "--config", tmp_path / "own.yaml")


def test_a_folder_name_that_is_too_long(tmp_path):
    mistake(tmp_path, "train", "--output-dir", tmp_path / ("x" * 300), says="a shorter name")


def test_a_fingerprint_that_is_damaged_is_not_other_data(trained, tmp_path):
    part = tmp_path / "part"
    shutil.copytree(trained[0], part)
    (part / "data_fingerprint.txt").write_text("")
    with pytest.raises(UserError, match=r"data_fingerprint\.txt is damaged: delete it"):
        here("train", "--output-dir", part, "--resume", "--epochs", 3)


def test_settings_from_a_file_and_options_on_top(trained, tmp_path, monkeypatch):
    folder, _ = trained
    out, read = tmp_path / "again", []
    of_file = train.read_settings
    monkeypatch.setattr(train, "read_settings", lambda file: read.append(file) or of_file(file))
    here("train", "--config", folder / "config.json", "--output_dir", out, "--epochs", 1)
    assert read == [folder / "config.json"], "once"
    again = Config.from_dict(json.loads((out / "config.json").read_text()))
    assert (again.epochs, again.width, again.labels) == (1, 0.1, 20)


@pytest.mark.slow
def test_mixture_trains_with_its_panels(tmp_path):
    for model in ("ali", "gan"):
        folder = tmp_path / model
        out, _ = ali("train", "--output-dir", folder, "--data", "mixture", "--model", model,
                     "--epochs", 2, "--image-every", 1, "--train-size", 200, *POINTS)  # fmt: skip
        assert "modes_missed" in out and "val_error" not in out
        assert sorted(path.name for path in folder.glob("*.png")) == [
            "samples-0001.png",
            "samples-0002.png",
        ]
        assert epochs(folder) == [1, 2]
    ali("figure", 7, "--checkpoint", tmp_path / "ali", "--gan", tmp_path / "gan",
        "--output", tmp_path / "7.png")  # fmt: skip
    assert Image.open(tmp_path / "7.png").size[0] == 1040


@pytest.mark.parametrize(
    ("model", "rates"),
    [("vae-m1", "--lr-g"), ("convnet", "--lr-d"), ("gan", "--lr-d and --lr-g")],
)
def test_of_what_diverges_the_rates_that_it_has_are_to_be_lowered(tmp_path, model, rates):
    given = [one for rate in rates.split(" and ") for one in (rate, 1e30)]
    with pytest.raises(SystemExit, match=rf"diverged \(.*\); try a smaller {rates}$"):
        here("train", "--output-dir", tmp_path / "run", "--data", "mixture", "--model", model,
             *given, "--epochs", 1, "--train-size", 200, *POINTS)  # fmt: skip


def test_gan_samples(tmp_path, data):
    folder = tmp_path / "gan"
    out, _ = ali("train", "--output-dir", folder, "--model", "gan", "--epochs", 1, *TINY, *data)
    assert "val_error" in out and "sample_distance" in out
    assert [path.name for path in folder.glob("*.png")] == ["samples-0001.png"]
    ali("sample", "--checkpoint", folder, "--output", tmp_path / "s.png", "--count", 4)
    assert Image.open(tmp_path / "s.png").size == (70, 70)


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_cleanly(tmp_path, data, sent, code):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "ali", "train", "--output-dir", folder, "--epochs", "9999"]
    process = subprocess.Popen(
        [*map(str, command), *TINY, *map(str, data)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # tests that a script runs in the background hand down SIGINT ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        limit = time.monotonic() + 240  # a busy machine takes a minute to import torch
        while not (folder / "checkpoint" / "state.json").exists():
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.1)
        process.send_signal(sent)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == code
    assert len(err.splitlines()) == 1 and f"train --resume --output-dir {folder}" in err
    done = read_manifest(folder / "checkpoint").epoch
    # pasted into a fresh shell
    line = err.partition("resume with: ")[2].strip() + f" --epochs {done + 1}"
    shell = ["env", "-i", f"ALI_CACHE={cache_dir()}", "OMP_NUM_THREADS=1", "sh", "-c", line]
    resumed = subprocess.run(shell, capture_output=True, text=True, timeout=240)
    assert resumed.returncode == 0, resumed.stderr
    assert epochs(folder) == list(range(1, done + 2))


def test_help_names_options_with_unit_and_default():
    out, _ = ali("train", "--help")
    shown = " ".join(out.replace("│", " ").split())
    assert "--beta1-d FLOAT Adam β₁ of the discriminator. (default: 0.5)" in shown
    assert "--batch-size INT Images per step (M in Algorithm 1). (default: 100)" in shown
    assert "--output-dir PATH" in shown and "(required)" in shown
    assert all(
        name in ali("--help")[0] for name in ("reconstruct", "interpolate", "figure", "encode")
    )


def test_a_reader_that_goes_away_is_no_reason_to_end(trained, tmp_path):
    folder, _ = trained
    process = subprocess.Popen(
        [sys.executable, "-m", "ali", "train", "--output-dir", folder, "--resume"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


# Mistakes: code 2, one line on stderr, nothing written


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--widht", "3"], "--widht"),
        (["--width", "wide"], "--width"),
        (["--width", "-1"], "--width must be in (0, 8]"),
        (["--data", "mnist"], "house-numbers"),
        (["--bn-x", "True", "False"], "5 convolutions"),
        (["--image-every", "0"], "--image-every"),
        (["--threads", "0"], "--threads"),
        (["--config", "nowhere.json"], "nowhere.json"),
        (["--resume"], "no run"),
        (["--seed", 2**64], "--seed must be from 0 to"),
        (["--levels", 1000], "--levels must be from 1 to 16"),
        (["--threads", 10**12], "--threads must be at most"),
        (["--data", "mixture", "--train-size", 10**12], "--train-size must be at most"),
        (["--model", "vae-m1m2", "--epochs", 2, "--m1-epochs", 5], "--m1-epochs must be below"),
        (["--model", "vae-m1m2", "--epochs", 1], "--epochs must be 2 or more, as M2"),
        (["--modes", 25], "--modes has no effect with --data house-numbers: leave it out"),
        (["--model", "convnet", "--draws", 9], "--draws has no effect with --model convnet"),
    ],
)
def test_mistaken_options(tmp_path, options, says):
    mistake(tmp_path, "train", "--output-dir", tmp_path / "run", *options, says=says)


def test_mistaken_data(tmp_path, svhn):
    run = ["train", "--output-dir", tmp_path / "run", *TINY, "--data", "svhn", "--data-dir"]
    mistake(tmp_path, *run, tmp_path / "nowhere", says="nowhere")
    broken = tmp_path / "broken"
    broken.mkdir()
    whole = (svhn / "train_32x32.mat").read_bytes()
    (broken / "train_32x32.mat").write_bytes(whole[: len(whole) // 2])
    mistake(tmp_path, *run, broken, says="train_32x32.mat")


def test_output_folder_in_use(trained, data):
    folder, _ = trained
    mistake(folder, "train", "--output-dir", folder, *TINY, *data, says="--resume")
    for options, says in (
        (["--output-dir", folder, "--resume", "--width", 0.2], "width"),
        (["--output-dir", folder / "config.json"], "in use"),
    ):
        with pytest.raises(UserError, match=says):
            here("train", *options, *TINY[2:])


@pytest.mark.parametrize("place", ["/dev/null/run", "/proc/run"])
def test_output_folder_that_cannot_be_made(tmp_path, data, place):
    mistake(tmp_path, "train", "--output-dir", place, *TINY, *data, says=place)


def test_an_option_that_only_the_files_model_has_fits_the_file(tmp_path):
    file, folder = tmp_path / "m2.yaml", tmp_path / "run"
    file.write_text("model: vae-m2\nwidth: 0.1\nepochs: 1\ntrain_size: 200\nlabels: 50\n")
    here("train", "--config", file, "--output-dir", folder, "--label-weight", 0.5)
    assert read_manifest(folder / "checkpoint").config.label_weight == 0.5
    here("train", "--resume", "--output-dir", folder, "--epochs", 2, "--label-weight", 0.5)
    assert epochs(folder) == [1, 2]


def test_a_checkpoint_finds_its_data_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for n in range(40):
        picture = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        picture.save(tmp_path / "images" / f"{n}.png")
    small = ["--width", 0.1, "--batch-size", 10, "--epochs", 1]
    here("train", "--data", "folder", "--data-dir", "images", "--output-dir", "run", *small)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    here("reconstruct", "--checkpoint", tmp_path / "run", "--output", "pairs.png", "--count", 2)
    between = ["interpolate", "--checkpoint", tmp_path / "run", "--output", "between.png"]
    with pytest.raises(UserError, match="more than 10000 pictures"):
        here(*between, "--rows", 1000, "--steps", 1000)


def test_what_a_file_holds_is_no_mistake_of_the_command_line(tmp_path, data):
    """Settings of an ALI, for a GAN: its D(z) and encoder are gone, and what was said of them."""
    file, folder = tmp_path / "config.json", tmp_path / "run"
    file.write_text(json.dumps({"dropout_z": 0.4, "slope_encoder": 0.3}))
    train = ["train", "--config", file, "--model", "gan", "--output-dir", folder, "--epochs", 1]
    given = *train, *TINY, *data, "--slope-encoder", "0.2"
    mistake(tmp_path, *given, says="--slope-encoder has no effect")
    ali(*train, *TINY, *data)
    assert epochs(folder) == [1]
