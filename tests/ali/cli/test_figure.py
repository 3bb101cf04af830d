"""`python -m ali figure` on a checkpoint of each data set."""

import numpy as np
import pytest
from PIL import Image

from ali import __main__ as commands
from ali.config import Config
from ali.data import Images
from ali.errors import UserError
from ali.figures import paper
from tests.ali.figures.pictures import MIXTURE, SIZES, TINY, noise, saved, tile


@pytest.fixture(scope="module")
def images_of(tmp_path_factory):
    """A folder of 40 PNGs of 64×64 by which any data set is stood in for: --data folder."""
    folder = tmp_path_factory.mktemp("images")
    for i, image in enumerate(noise(40, 64)):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    return folder


def figure(number, folder, output, *options):
    arguments = ["figure", number, "--checkpoint", folder, "--output", output, *options]
    commands.run([str(argument) for argument in arguments])


@pytest.mark.parametrize("number", [2, 3, 4, 5, 6])
def test_each_figure_on_a_checkpoint_of_its_data_set(tmp_path, monkeypatch, number):
    """The files of a data set are read in tests/ali/data; here its images are made up."""
    data = paper.DATA.get(number, "celeba")
    folder = saved(tmp_path / "checkpoint", Config(data=data, **TINY))
    asked = []

    def load(config, check_labels):
        asked.append(config.data)
        return type("Loaded", (), {"valid": Images(noise(60, SIZES[data]), None)})

    monkeypatch.setattr("ali.data.load", load)
    figure(number, folder, tmp_path / "figure.png")
    assert asked == [data]
    picture = np.asarray(Image.open(tmp_path / "figure.png"))
    x = noise(60, SIZES[data])
    start = 0 if number == 6 else 3 * paper.MARGIN + 2 + 10 * (SIZES[data] + 2)
    np.testing.assert_array_equal(tile(picture[:, start:], SIZES[data], 0, 0), x[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint", "figure.png"]


def test_figure_6_of_the_users_own_images(tmp_path, images_of):
    config = Config(data="folder", data_dir=images_of, image_size=64, **TINY)
    figure(6, saved(tmp_path / "c", config), tmp_path / "6.png")
    assert Image.open(tmp_path / "6.png").width == 2 + 12 * 66


def test_figure_7(tmp_path):
    ali = saved(tmp_path / "ali", MIXTURE)
    gan = saved(tmp_path / "gan", MIXTURE.replace(model="gan"))
    wide = saved(tmp_path / "wide", MIXTURE.replace(model="gan", modes=25))
    figure(7, ali, tmp_path / "three.png")
    figure(7, ali, tmp_path / "four.png", "--gan", gan)
    three, four = (Image.open(tmp_path / f"{name}.png") for name in ("three", "four"))
    assert four.width > three.width and four.height == three.height
    for checkpoint, options, says in (
        (gan, [], "as --checkpoint"),
        (ali, ["--gan", ali], "--model gan"),
        (ali, ["--gan", wide], "--modes 9"),
        (ali, ["--data", "svhn"], "--data"),
        (ali, ["--precision", "bf16"], "--precision bf16 has no effect on the mixture's points"),
    ):
        with pytest.raises(UserError, match=says):
            figure(7, checkpoint, tmp_path / "no.png", *options)
    assert not (tmp_path / "no.png").exists()


def test_images_of_another_size_or_figure(tmp_path, images_of):
    folder = saved(tmp_path / "c", Config(data="svhn", **TINY))
    own = ["--data-dir", images_of, "--data"]
    with pytest.raises(UserError, match="figure 6 shows any"):
        figure(3, folder, tmp_path / "no.png", *own, "folder")
    figure(6, folder, tmp_path / "6.png", *own, "folder")  # read at the checkpoint's 32×32
    assert Image.open(tmp_path / "6.png").width == 2 + 12 * 34
    with pytest.raises(UserError, match="leave --gan out"):
        figure(3, folder, tmp_path / "no.png", "--gan", folder)
