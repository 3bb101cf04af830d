"""ali.figures.grids: what pictures show, and which there are of an epoch."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from ali.config import Config
from ali.data import Dataset, Images
from ali.errors import UserError
from ali.figures import grids
from ali.metrics import INTERPOLATIONS, RECONSTRUCTIONS, SAMPLES
from ali.models.networks import build
from tests.ali.figures.pictures import MIXTURE, noise

pytestmark = pytest.mark.numerics

CONFIG = Config(width=0.1, precision="fp32")
X = noise(60, 32)


@pytest.fixture(scope="module")
def networks():
    """Untrained, but for running statistics and biases that are not their initial ones."""
    networks = build(CONFIG)
    rng = torch.Generator().manual_seed(0)
    for name, tensor in networks.state_dict().items():
        if name.endswith(("weight", "bias", "beta")):
            tensor.normal_(0, 0.3, generator=rng)
        elif name.endswith(("running_mean", "running_var")):
            tensor.uniform_(0.5, 1, generator=rng)
    return networks.train()


def bits(networks):
    return {name: tensor.clone() for name, tensor in networks.state_dict().items()}


def tile(picture, row, column):
    return picture[2 + 34 * row : 34 + 34 * row, 2 + 34 * column : 34 + 34 * column]


def test_reconstructions_pair_source_and_result(networks):
    x = X[:18]
    picture = grids.reconstructions(networks, x, seed=1)
    assert picture.dtype == np.uint8 and picture.shape == (2 + 34 * 6, 2 + 34 * 6, 3)
    for i in range(18):
        row, column = divmod(2 * i, 6)
        np.testing.assert_array_equal(tile(picture, row, column), x[i])
        assert (tile(picture, row, column + 1) != x[i]).any()


def test_interpolations_end_at_their_images(networks):
    x = X[:6]
    picture = grids.interpolations(networks, x, rows=3, steps=5, seed=2)
    assert picture.shape == (2 + 34 * 3, 2 + 34 * 7, 3)
    for row in range(3):
        np.testing.assert_array_equal(tile(picture, row, 0), x[row])
        np.testing.assert_array_equal(tile(picture, row, 6), x[3 + row])
    # the ends of a line are the reconstructions by the same draw of ẑ
    pairs = grids.reconstructions(networks, x, seed=2)
    first = tile(picture, 0, 1).astype(int) - tile(pairs, 0, 1)
    assert abs(first).max() <= 1
    alike = grids.interpolations(networks, np.repeat(x[:1], 2, 0), 1, 5, seed=2)
    assert alike.shape == (2 + 34, 2 + 34 * 7, 3)


def test_pictures_depend_on_their_seed_alone(networks):
    x = X[:8]
    before, state = bits(networks), torch.get_rng_state()
    for draw in (
        lambda seed: grids.samples(networks, 9, seed),
        lambda seed: grids.reconstructions(networks, x, seed),
        lambda seed: grids.interpolations(networks, x, seed=seed),
    ):
        first = draw(0)
        torch.rand(3)
        np.testing.assert_array_equal(draw(0), first)
        assert (draw(1) != first).any()
        torch.set_rng_state(state)
        draw(0)
        assert torch.equal(torch.get_rng_state(), state)
    assert networks.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in bits(networks).items())


def test_samples_fill_a_square(networks):
    assert grids.samples(networks, 100).shape == (342, 342, 3)


def test_interpolation_needs_a_pair(networks):
    with pytest.raises(UserError, match="two images"):
        grids.interpolations(networks, X[:1])


@pytest.mark.parametrize(("count", "columns"), [(7, 3), (12, 4), (2, 5)])
def test_a_grid_is_torchvisions(count, columns):
    from torchvision.utils import make_grid

    images = torch.rand(count, 3, 6, 5)
    grid = make_grid(images, nrow=columns, padding=2, pad_value=1.0)
    expected = grid.mul(255).round().byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(grids._grid(images, columns), expected)


# The pictures of an epoch


def test_epoch_pictures_of_images(networks):
    valid = Images(X, None)
    dataset = Dataset("noise", valid, valid, valid, 0, "0" * 16)
    pictures = grids.epoch_pictures(networks, dataset, CONFIG)
    assert list(pictures) == [SAMPLES, RECONSTRUCTIONS, INTERPOLATIONS]
    assert all(p.dtype == np.uint8 and p.shape[2] == 3 for p in pictures.values())
    np.testing.assert_array_equal(tile(pictures[RECONSTRUCTIONS], 0, 0), X[0])
    np.testing.assert_array_equal(tile(pictures[INTERPOLATIONS], 0, 0), X[-16])
    np.testing.assert_array_equal(tile(pictures[INTERPOLATIONS], 7, 11), X[-1])
    gan = CONFIG.replace(model="gan")
    assert list(grids.epoch_pictures(build(gan), dataset, gan)) == [SAMPLES]


@pytest.mark.parametrize("model", ["ali", "gan"])
def test_epoch_pictures_of_the_mixture_are_its_panels(model):
    config, none = MIXTURE.replace(model=model), Images(np.zeros((2, 1, 1, 2), np.float32), None)
    dataset = Dataset("mixture", none, none, none, 0, "0" * 16)
    (panels,) = grids.epoch_pictures(build(config), dataset, config).values()
    assert panels.shape[0] > 300 and panels.dtype == np.uint8


def test_a_trials_process_imports_neither_matplotlib_nor_torchvision():
    """Each takes a second or more, which every trial of images would wait."""
    code = "import sys, ali.experiment, ali.figures.grids\n"
    code += "print({'matplotlib', 'torchvision'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "set()\n", done.stdout + done.stderr
