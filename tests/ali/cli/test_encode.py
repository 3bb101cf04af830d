"""`python -m ali encode`, and the images it reads."""

import numpy as np
import pytest
import scipy.io
from PIL import Image

from ali.config import Config
from ali.data.image_files import read_images
from ali.errors import UserError
from ali.evaluation import protocol
from ali.models.networks import build
from tests.ali.cli.commands import ali, here, untrained


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
    header = b"MATLAB 7.3 MAT-file".ljust(124) + bytes([0, 2]) + b"IM"  # an HDF5 file follows
    (tmp_path / "hdf.mat").write_bytes(header.ljust(512, b"\0") + b"\x89HDF\r\n")
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
        "none.npz": "N from 1",
        "cut.npz": "damaged",
        "other.mat": "name the images X",
        "hdf.mat": "MATLAB 7.3 file: save it with -v7",
        "text.csv": "must be",
        "empty": "no image files",
        "sizes": "31×32",
        "damaged": "cannot read the image",
    }.items():
        with pytest.raises(UserError, match=says) as caught:
            read_images(tmp_path / name, 32)
        assert "\n" not in str(caught.value)
