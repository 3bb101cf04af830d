"""`python -m ali` and ali.cli across real processes: what a user meets, mistakes included."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from ali import __main__ as commands
from ali import cli, files
from ali.config import Config
from ali.data import Images
from ali.data.image_files import read_images
from ali.errors import UserError
from ali.evaluation import protocol
from ali.models.networks import build
from ali.models.tables import paper_table
from ali.training.state import State

TINY = ["--width", "0.1", "--batch-size", "20", "--labels", "20", "--draws", "1"]
TINY += ["--precision", "fp32", "--threads", "1"]


def ali(*arguments, expect=0, **environment):
    """Runs `python -m ali`; its exit code must be `expect`. Returns (stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, "-m", "ali", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        timeout=120,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout, done.stderr


def here(*arguments):
    """The same within this process, where start-up is not what is tested."""
    commands.run([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def svhn(tmp_path_factory):
    """A folder in SVHN's layout, 75 images: 60 to train on, 15 to validate."""
    folder = tmp_path_factory.mktemp("svhn")
    rng = np.random.default_rng(0)
    for name, n in (("train", 75), ("test", 20)):
        x = rng.integers(0, 256, (32, 32, 3, n), np.uint8)
        y = (np.arange(n) % 10 + 1).astype(np.uint8)[:, None]
        scipy.io.savemat(folder / f"{name}_32x32.mat", {"X": x, "y": y})
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    before = os.environ.get("ALI_CACHE")
    os.environ["ALI_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["ALI_CACHE"]
    else:
        os.environ["ALI_CACHE"] = before


@pytest.fixture(scope="module")
def data(svhn):
    return ["--data", "svhn", "--data-dir", svhn]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    """A run of two epochs, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    out, err = ali("train", "--output-dir", folder, "--epochs", 2, *TINY, *data)
    assert err == ""
    return folder, out


def untrained(folder, config):
    """A checkpoint without training, which takes no data."""
    channels, height, width = paper_table(config).image
    dtype = np.float32 if config.data == "mixture" else np.uint8
    images = Images(np.zeros((4, height, width, channels), dtype), None)
    State.create(config, images, "cpu").save(folder)
    return folder


def epochs(folder):
    return [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").open()]


def contents(folder):
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# What works


def test_train_writes_a_run(trained):
    folder, out = trained
    assert epochs(folder) == [1, 2]
    assert Config.from_dict(json.loads((folder / "config.json").read_text())).epochs == 2
    assert (folder / "checkpoint" / "state.json").exists()
    assert Image.open(folder / "samples-0002.png").size == (342, 342)
    assert (folder / "reconstructions-0002.png").exists()
    told = [line for line in out.splitlines() if line.startswith("epoch ")]
    assert len(told) == 2 and "val_error" in told[0] and "images/s" in told[0]


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


def test_settings_from_a_file_and_options_on_top(trained, tmp_path):
    folder, _ = trained
    out = tmp_path / "again"
    here("train", "--config", folder / "config.json", "--output-dir", out, "--epochs", 1)
    again = Config.from_dict(json.loads((out / "config.json").read_text()))
    assert (again.epochs, again.width, again.labels) == (1, 0.1, 20)


def test_pictures(trained, tmp_path):
    folder, _ = trained
    where = ["--checkpoint", folder, "--output"]
    ali("sample", *where, tmp_path / "s.png", "--count", 9)
    here("reconstruct", *where, tmp_path / "r.png", "--count", 8)
    here("interpolate", *where, tmp_path / "i.png", "--rows", 2, "--steps", 4)
    sizes = {p.stem: Image.open(p).size for p in tmp_path.glob("*.png")}
    assert sizes == {"s": (104, 104), "r": (138, 138), "i": (206, 70)}
    assert len(list(tmp_path.iterdir())) == 3  # no temporary file stays


def test_encode_reads_every_form_alike(trained, tmp_path):
    folder, _ = trained
    x = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "nhwc.npz", x=x, y=np.arange(5))
    np.savez(tmp_path / "nchw.npz", x.transpose(0, 3, 1, 2))
    scipy.io.savemat(tmp_path / "m.mat", {"X": x.transpose(1, 2, 3, 0)})
    (tmp_path / "files").mkdir()
    for i, image in enumerate(x):
        Image.fromarray(image).save(tmp_path / "files" / f"{'abcde'[i]}.png")
    (tmp_path / "files" / "notes.txt").write_text("no image")
    for source in ("nhwc.npz", "nchw.npz", "m.mat", "files"):
        got, _ = read_images(tmp_path / source, 32)
        np.testing.assert_array_equal(got, x)
    target = tmp_path / "codes.npz"
    ali("encode", "--checkpoint", folder / "checkpoint", "--input", tmp_path / "files",
        "--output", target, "--features")  # fmt: skip
    with np.load(target) as codes:
        assert codes["mu"].shape == (5, 256) and codes["mu"].dtype == np.float32
        np.testing.assert_array_equal(codes["features"][:, -256:], codes["mu"])
        assert codes["names"].tolist() == ["a.png", "b.png", "c.png", "d.png", "e.png"]


def test_encode_takes_the_size_of_its_networks(tmp_path):
    folder = untrained(tmp_path / "c", Config(data="tiny-imagenet", width=0.05, precision="fp32"))
    x = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    np.savez(tmp_path / "x.npz", x)
    np.savez(tmp_path / "small.npz", x[:, :32, :32])
    where = ["--checkpoint", folder, "--output", tmp_path / "codes.npz", "--input"]
    here("encode", *where, tmp_path / "x.npz", "--features")
    with np.load(tmp_path / "codes.npz") as codes:
        assert codes["mu"].shape == (3, 256)
        np.testing.assert_array_equal(codes["features"][:, -256:], codes["mu"])
    with pytest.raises(UserError, match="64×64"):
        here("encode", *where, tmp_path / "small.npz")


def test_help_gives_the_features_of_each_table():
    told = " ".join(ali("encode", "--help")[0].replace("│", " ").split())
    for data in ("svhn", "cifar10", "celeba", "tiny-imagenet"):
        networks = build(Config(data=data))
        _, size, _ = networks.table.image
        count = protocol.features(networks, np.zeros((1, size, size, 3), np.uint8)).shape[1]
        assert f"{count} for" in told, (data, count)


def test_mixture_trains_with_its_panels(tmp_path):
    for model in ("ali", "gan"):
        folder = tmp_path / model
        out, _ = ali("train", "--output-dir", folder, "--data", "mixture", "--model", model,
                     "--epochs", 2, "--image-every", 1, "--train-size", 200, *TINY)  # fmt: skip
        assert "modes_missed" in out and "val_error" not in out
        assert sorted(path.name for path in folder.glob("*.png")) == [
            "samples-0001.png",
            "samples-0002.png",
        ]
        assert epochs(folder) == [1, 2]
    ali("figure", 7, "--checkpoint", tmp_path / "ali", "--gan", tmp_path / "gan",
        "--output", tmp_path / "7.png")  # fmt: skip
    assert Image.open(tmp_path / "7.png").size[0] == 1040


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
    done = json.loads((folder / "checkpoint/state.json").read_text())["epoch"]
    ali("train", "--output-dir", folder, "--resume", "--epochs", done + 1)
    assert epochs(folder) == list(range(1, done + 2))


def test_help_names_options_with_unit_and_default():
    out, _ = ali("train", "--help")
    told = " ".join(out.replace("│", " ").split())
    assert "--lr-d FLOAT Adam learning rate of the discriminator. (default: 0.0001)" in told
    assert "--batch-size INT Images a step (M in Algorithm 1). (default: 100)" in told
    assert "--output-dir PATH" in told and "(required)" in told
    assert all(
        name in ali("--help")[0] for name in ("reconstruct", "interpolate", "figure", "encode")
    )


def test_a_reader_that_goes_away_is_no_traceback(trained, tmp_path):
    folder, _ = trained
    process = subprocess.Popen(
        [sys.executable, "-m", "ali", "train", "--output-dir", folder, "--resume"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1


# Mistakes: code 2, one line on stderr, nothing written


def mistake(tmp_path, *arguments, says):
    before = contents(tmp_path)
    _, err = ali(*arguments, expect=2)
    assert err.startswith("error: ") and len(err.splitlines()) == 1, err
    assert says in err
    assert contents(tmp_path) == before


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
    ],
)
def test_mistaken_options(tmp_path, options, says):
    mistake(tmp_path, "train", "--output-dir", tmp_path / "run", *options, says=says)


def test_mistaken_commands(tmp_path):
    mistake(tmp_path, says="train")
    mistake(tmp_path, "tarin", says="tarin")
    mistake(tmp_path, "train", says="--output-dir")


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


def test_mistaken_checkpoints_and_outputs(tmp_path, trained):
    folder, _ = trained
    png = ["--output", tmp_path / "s.png"]
    mistake(tmp_path, "sample", "--checkpoint", tmp_path / "none", *png, says="no checkpoint")
    for output, says in (
        (tmp_path / "s.jpg", ".png"),
        (tmp_path / "nowhere" / "s.png", "nowhere"),
        ("/proc/s.png", "/proc/s.png"),
    ):
        with pytest.raises(UserError, match=says):
            here("sample", "--checkpoint", folder, "--output", output)
    assert list(tmp_path.iterdir()) == []


def test_a_gan_and_the_mixture_cannot_be_asked_for_everything(tmp_path, trained, svhn):
    gan = untrained(tmp_path / "gan", Config(data="svhn", model="gan", width=0.05))
    points = untrained(tmp_path / "points", Config(data="mixture"))
    png, npz = ["--output", tmp_path / "no.png"], ["--output", tmp_path / "no.npz"]
    mistake(tmp_path, "reconstruct", "--checkpoint", gan, *png, says="a GAN has no encoder")
    mistake(tmp_path, "figure", 2, "--checkpoint", trained[0], *png, says="figure 3")
    for command, checkpoint, says in (
        (["interpolate", *png], gan, "a GAN has no encoder"),
        (["figure", 3, *png], gan, "a GAN has no encoder"),
        (["encode", *npz, "--input", svhn / "test_32x32.mat"], gan, "a GAN has no encoder"),
        (["sample", *png], points, "figure 7"),
        (["reconstruct", *png], points, "figure 7"),
        (["encode", *npz, "--input", svhn / "test_32x32.mat"], points, "figure 7"),
        (["reconstruct", "--data", "mixture", *png], trained[0], "32×32"),
        (["figure", 1, *png], trained[0], "1"),
    ):
        with pytest.raises(UserError, match=says):
            here(*command, "--checkpoint", checkpoint)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gan", "points"]


def test_mistaken_images(tmp_path):
    """Through read_images, which `encode` calls first."""
    x = np.zeros((2, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "float.npz", x=x / 255)
    np.savez(tmp_path / "large.npz", x=np.zeros((2, 64, 64, 3), np.uint8))
    np.savez(tmp_path / "two.npz", a=x, b=x)
    np.savez(tmp_path / "none.npz", x=x[:0])
    np.savez(tmp_path / "good.npz", x=x)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:200])
    scipy.io.savemat(tmp_path / "other.mat", {"Z": x})
    (tmp_path / "text.csv").write_text("1,2")
    for name in ("empty", "sizes", "damaged"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (31, 32)).save(tmp_path / "sizes" / "a.png")
    (tmp_path / "damaged" / "a.png").write_bytes(b"\x89PNG no more")
    for name, says in {
        "nowhere": "does not exist",
        "float.npz": "uint8",
        "large.npz": "32×32",
        "two.npz": "name the images",
        "none.npz": "one at least",
        "cut.npz": "damaged",
        "other.mat": "damaged",
        "text.csv": "must be",
        "empty": "no image files",
        "sizes": "31×32",
        "damaged": "cannot read the image",
    }.items():
        with pytest.raises(UserError, match=says) as caught:
            read_images(tmp_path / name, 32)
        assert "\n" not in str(caught.value)


# ali.cli, which the sweeps share


def code_of(function):
    with pytest.raises(SystemExit) as stop:
        cli.main(function)
    return stop.value.code


def raiser(error):
    def function():
        raise error

    return function


def test_exit_codes(capsys):
    assert code_of(lambda: None) == 0
    assert code_of(lambda: 3) == 3
    assert code_of(raiser(KeyboardInterrupt())) == 130
    assert code_of(raiser(cli.Terminated())) == 143
    capsys.readouterr()
    assert code_of(raiser(UserError("two\nlines"))) == 2
    assert capsys.readouterr().err == "error: two lines\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_disk_that_cannot_be_written(capsys, number):
    assert code_of(raiser(OSError(number, os.strerror(number), "runs/x"))) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: cannot write runs/x") and len(err.splitlines()) == 1


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.main(lambda: 1 // 0)
    with pytest.raises(OSError, match="gone"):
        cli.main(raiser(OSError(errno.EIO, "gone")))


@dataclass(frozen=True)
class Options:
    """A sweep's options."""

    name: str = "svhn"
    """Name."""
    num_trials: int = 8
    """Trials."""


def test_parse_args_puts_options_on_a_default():
    parsed = cli.parse_args(Options, ["--num-trials", "3"], default=Options(name="other"))
    assert parsed == Options("other", 3)
    with pytest.raises(UserError, match="--num-trails") as caught:
        cli.parse_args(Options, ["--num-trails", "3"])
    assert "\n" not in str(caught.value)


def test_writing_leaves_the_old_file_on_failure(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), files.atomic_write(path) as partial:
        partial.write_text("half")
        1 // 0  # noqa: B018
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match="cannot write"), files.atomic_write(path):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_terminable_puts_the_handler_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(cli.Terminated), cli.terminable():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) is before


def test_make_folder(tmp_path):
    assert files.make_folder(tmp_path / "a" / "b").is_dir()
    Path(tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        files.make_folder(tmp_path / "file" / "x")
