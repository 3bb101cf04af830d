"""ali.figures, and `python -m ali figure` on a checkpoint of each data set."""

import numpy as np
import pytest
import torch
from PIL import Image

from ali import __main__ as commands
from ali.config import Config
from ali.data import Images, mixture
from ali.errors import UserError
from ali.evaluation import protocol, quality
from ali.figures import paper
from ali.metrics import MODES_MISSED
from ali.models.networks import build
from ali.training.state import State

TINY = {"width": 0.05, "precision": "fp32", "batch_size": 2, "labels": 2, "balanced": False}
MIXTURE = Config(data="mixture", width=0.1, precision="fp32")
SIZES = {"house-numbers": 32, "cifar10": 32, "svhn": 32, "celeba": 64, "tiny-imagenet": 64}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALI_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def alive(networks):
    """Weights large enough that outputs differ from input to input."""
    rng = torch.Generator().manual_seed(0)
    for name, tensor in networks.state_dict().items():
        if name.endswith("weight"):
            tensor.normal_(0, 0.3, generator=rng)
    return networks


def noise(n, size):
    return np.random.default_rng(size).integers(0, 256, (n, size, size, 3), np.uint8)


def saved(folder, config):
    """A checkpoint of untrained networks."""
    size = SIZES.get(config.data, config.image_size)
    x = np.zeros((4, 1, 1, 2), np.float32) if config.data == "mixture" else noise(4, size)
    State.create(config, Images(x, None), "cpu").save(folder)
    return folder


@pytest.fixture(scope="module")
def images_of(tmp_path_factory):
    """A folder of 40 PNGs of 64×64 by which any data set is stood in for: --data folder."""
    folder = tmp_path_factory.mktemp("images")
    for i, image in enumerate(noise(40, 64)):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    return folder


def tile(picture, size, row, column):
    pitch = size + 2
    rows = slice(2 + pitch * row, pitch * (row + 1))
    return picture[rows, 2 + pitch * column : pitch * (column + 1)]


# Grids


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 13, 49, 50])
@pytest.mark.parametrize("size", [32, 64])
def test_sources_keep_to_odd_columns_at_any_count(n, size):
    networks = alive(build(Config(data="cifar10" if size == 32 else "celeba", **TINY)))
    x = noise(n, size)
    picture = protocol.reconstructions(networks, x)
    columns = (picture.shape[1] - 2) // (size + 2)
    assert columns % 2 == 0
    for i in range(n):
        row, column = divmod(2 * i, columns)
        np.testing.assert_array_equal(tile(picture, size, row, column), x[i])
        assert (tile(picture, size, row, column + 1) != x[i]).any()


@pytest.mark.parametrize(
    ("number", "data"), [(2, "cifar10"), (3, "svhn"), (3, "house-numbers"), (5, "tiny-imagenet")]
)
def test_figure_holds_both_grids_as_evaluate_draws_them(number, data):
    networks = alive(build(Config(data=data, **TINY)))
    x = noise(60, SIZES[data])
    picture = paper.samples_and_reconstructions(number, networks, x, data, seed=3)
    samples = protocol.samples(networks, 100, seed=3)
    pairs = protocol.reconstructions(networks, x[:50], seed=3)
    height, width = samples.shape[:2]
    assert pairs.shape == samples.shape
    margin = paper.MARGIN
    np.testing.assert_array_equal(picture[:height, margin : margin + width], samples)
    right = 3 * margin + width
    np.testing.assert_array_equal(picture[:height, right : right + width], pairs)
    below = picture[height:]
    assert (below == 0).any(axis=2).any()  # the captions, which no edge cuts
    for edge in (below[:, :2], below[:, -2:], below[-1:], below[:1]):
        assert (edge == 255).all()


def test_caption_wider_than_its_picture_is_not_cut():
    picture = paper._captioned(np.zeros((10, 10, 3), np.uint8), "a line of some length")
    assert picture.shape[1] > 100
    text = picture[10:]
    columns = np.flatnonzero((text < 128).any(axis=(0, 2)))
    assert columns[0] >= paper.MARGIN - 2
    assert picture.shape[1] - columns[-1] >= paper.MARGIN - 2
    left = picture[:10] == 0
    assert left.sum() == 300  # the picture, whole, over it


def test_interpolations_show_the_images_themselves_at_the_ends():
    networks = alive(build(Config(data="celeba", **TINY)))
    x = noise(16, 64)
    picture = paper.interpolations(networks, x, "celeba")
    for row in range(8):
        np.testing.assert_array_equal(tile(picture, 64, row, 0), x[row])
        np.testing.assert_array_equal(tile(picture, 64, row, 11), x[8 + row])


@pytest.mark.parametrize(
    ("number", "data", "says"),
    [
        (2, "svhn", "figure 3"),
        (2, "house-numbers", "figure 3"),
        (3, "cifar10", "figure 2"),
        (4, "tiny-imagenet", "figure 5"),
        (5, "celeba", "figure 4"),
        (5, "folder", "figure 6"),
        (6, "mixture", "figure 7"),
        (7, "celeba", "figure 4"),
    ],
)
def test_wrong_data_set_names_the_right_figure(number, data, says):
    with pytest.raises(UserError, match=f"figure {number} .* {data}: .*{says}"):
        paper.check(number, data)


# Fig. 7


def test_panels_count_what_the_metric_counts(monkeypatch):
    """Modes covered, in the title, are those that MODES_MISSED is counted on."""
    from ali import data

    networks = alive(build(MIXTURE))
    seen = []
    monkeypatch.setattr(paper, "_plot", lambda rows, colours: seen.extend(rows))
    paper.mixture_panels(networks, MIXTURE)
    small = MIXTURE.replace(train_size=1000, labels=9)
    missed = quality.measure(networks, data.load(small), small)[MODES_MISSED]
    above, below = seen
    assert f"{9 - missed:.0f} of 9 modes" in above[2].title
    assert [p.title.split("\n")[0] for p in above] == ["Data", "ALI reconstructions", "ALI samples"]
    assert below[0] is None
    assert [p.title for p in below[1:]] == ["ALI encodings ẑ", "Prior z"]


def test_panels_colour_points_by_the_mode_they_come_from(monkeypatch):
    networks = alive(build(MIXTURE))
    seen = []
    monkeypatch.setattr(paper, "_plot", lambda rows, colours: seen.extend(rows))
    paper.mixture_panels(networks, MIXTURE)
    (data, x_hat, drawn), (_, codes, prior) = seen
    np.testing.assert_array_equal(mixture.nearest_mode(data.points, 9)[0], data.mode)
    assert data.mode is x_hat.mode is codes.mode
    assert drawn.mode is prior.mode
    mode, distance = mixture.nearest_mode(drawn.points, 9)
    np.testing.assert_array_equal(drawn.mode, np.where(distance <= mixture.NEAR, mode, -1))
    with torch.inference_mode():  # a draw from the prior has the colour of its own sample
        networks.eval()
        x_tilde = networks.decoder(torch.from_numpy(prior.points)).flatten(1).numpy()
    np.testing.assert_allclose(x_tilde, drawn.points, atol=1e-5)


def test_panels_of_each_model():
    gan = build(MIXTURE.replace(model="gan"))
    levels = MIXTURE.replace(levels=2)
    pictures = {
        "ali": paper.mixture_panels(build(MIXTURE), MIXTURE),
        "both": paper.mixture_panels(build(MIXTURE), MIXTURE, gan),
        "gan": paper.mixture_panels(gan, MIXTURE.replace(model="gan")),
        "levels": paper.mixture_panels(build(levels), levels),
    }
    side = round(paper.PANEL * paper.DPI)
    shapes = {name: (p.shape[0] // side, p.shape[1] // side) for name, p in pictures.items()}
    assert shapes == {"ali": (2, 3), "both": (2, 4), "gan": (2, 2), "levels": (3, 3)}
    assert all(p.dtype == np.uint8 and p.shape[2] == 3 for p in pictures.values())
    for picture in pictures.values():  # no title is cut
        assert (picture[:, :1] == 255).all() and (picture[:, -1:] == 255).all()


@pytest.mark.parametrize("modes", [9, 25])
def test_colours_tell_modes_apart(modes):
    colours = paper._colours(modes)
    assert len(colours) == modes + 1
    np.testing.assert_array_equal(colours[-1], paper.GREY)
    apart = np.linalg.norm(colours[:, None] - colours, axis=-1)[~np.eye(modes + 1, dtype=bool)]
    assert apart.min() > 0.1


# python -m ali figure


def figure(number, folder, output, *options):
    arguments = ["figure", number, "--checkpoint", folder, "--output", output, *options]
    commands.run([str(argument) for argument in arguments])


@pytest.mark.parametrize("number", [2, 3, 4, 5, 6])
def test_each_figure_on_a_checkpoint_of_its_data_set(tmp_path, monkeypatch, number):
    """The files of a data set are read in test_sources; here its images are made up."""
    data = paper.DATA.get(number, "celeba")
    folder = saved(tmp_path / "checkpoint", Config(data=data, **TINY))
    asked = []

    def load(config):
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
