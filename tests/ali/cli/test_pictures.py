"""`python -m ali sample`, `reconstruct` and `interpolate`."""

import shutil

import pytest
from PIL import Image

from ali.config import Config
from ali.errors import UserError
from tests.ali.cli.commands import ali, here, mistake, untrained


def test_pictures(trained, tmp_path):
    folder, _ = trained
    where = ["--checkpoint", folder, "--output"]
    ali("sample", *where, tmp_path / "s.png", "--count", 9)
    here("reconstruct", *where, tmp_path / "r.png", "--count", 8)
    here("interpolate", *where, tmp_path / "i.png", "--rows", 2, "--steps", 4)
    sizes = {p.stem: Image.open(p).size for p in tmp_path.glob("*.png")}
    assert sizes == {"s": (104, 104), "r": (138, 138), "i": (206, 70)}
    assert len(list(tmp_path.iterdir())) == 3  # no temporary file stays


def test_checkpoints_of_a_sweep_serve_too(trained, tmp_path):
    """Of a trial, in today's layout and the one before, and of a full training."""
    checkpoint, sweep = trained[0] / "checkpoint", tmp_path / "runs" / "svhn"
    shutil.copytree(checkpoint, sweep / "00003" / "checkpoint_000005")
    shutil.copytree(checkpoint, sweep / "00004" / "checkpoint_000009" / "state")
    shutil.copytree(checkpoint, sweep / "best-00003" / "checkpoint")
    here("sample", "--checkpoint", checkpoint, "--output", tmp_path / "0.png", "--count", 1)
    for place in (
        "00003/checkpoint_000005",
        "00003",
        "00004/checkpoint_000009",
        "00004",
        "best-00003",
    ):
        picture = tmp_path / "s.png"
        here("sample", "--checkpoint", sweep / place, "--output", picture, "--count", 1)
        assert picture.read_bytes() == (tmp_path / "0.png").read_bytes()


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
