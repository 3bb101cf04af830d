"""ali.models.inference: reconstructions and samples as arrays, those that the grids show."""

import numpy as np
import torch

from ali.config import Config
from ali.figures import grids
from ali.models import inference
from ali.models.networks import build
from tests.ali.figures.pictures import MIXTURE, noise

X = noise(4, 32)


def networks(config):
    made = build(config)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3, generator=torch.Generator().manual_seed(0))
    return made.train()


def test_reconstructions_and_samples_are_those_of_the_grids():
    found = networks(Config(width=0.1, precision="fp32"))
    made = inference.reconstruct(found, X, seed=3)
    assert made.shape == X.shape and made.dtype == np.uint8
    grid = grids.reconstructions(found, X, seed=3)
    np.testing.assert_array_equal(grid[2:34, 36:68], made[0])
    np.testing.assert_array_equal(
        grids.samples(found, 4)[2:34, 2:34], inference.sample(found, 4)[0]
    )
    assert (inference.sample(found, 4, seed=1) != inference.sample(found, 4)).any()
    np.testing.assert_array_equal(inference.encode(found, X), inference.mu(found, X))
    assert found.training


def test_points_stay_points():
    found, x = networks(MIXTURE), np.zeros((3, 1, 1, 2), np.float32)
    assert inference.encode(found, x).shape[0] == 3
    for made in (inference.reconstruct(found, x), inference.sample(found, 3)):
        assert made.shape == x.shape and made.dtype == np.float32
    assert len(inference.sample(found, inference.CHUNK + 1)) == inference.CHUNK + 1
