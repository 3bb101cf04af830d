"""ali.figures.paper: Figures 2 to 6 in the paper's arrangement."""

import numpy as np
import pytest

from ali.config import Config
from ali.errors import UserError
from ali.figures import grids, paper
from ali.models.networks import build
from tests.ali.figures.pictures import SIZES, TINY, alive, noise, tile

pytestmark = pytest.mark.numerics


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 13, 49, 50])
@pytest.mark.parametrize("size", [32, 64])
def test_sources_keep_to_odd_columns_at_any_count(n, size):
    networks = alive(build(Config(data="cifar10" if size == 32 else "celeba", **TINY)))
    x = noise(n, size)
    picture = grids.reconstructions(networks, x)
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
    samples = grids.samples(networks, 100, seed=3)
    pairs = grids.reconstructions(networks, x[:50], seed=3)
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
