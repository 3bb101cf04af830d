"""Trained networks as arrays in, arrays out."""

import numpy as np
import pytest

from ali.config import Config
from ali.data import load
from ali.errors import UserError
from ali.trained import TrainedNetworks
from ali.training.state import State


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    def save(config):
        folder = tmp_path_factory.mktemp("trained")
        dataset = load(config)
        State.create(config, dataset.train, "cpu").save(folder)
        return TrainedNetworks.load(folder, "cpu"), dataset.valid.x[:5]

    return save


@pytest.mark.parametrize("levels", [1, 2])
def test_images_are_encoded_reconstructed_and_sampled(saved, levels):
    networks, x = saved(
        Config(width=0.1, levels=levels, weight_std=0.2, train_size=500, labels=100)
    )
    assert networks.encode(x).shape == (5, 256) and networks.epoch == 0
    again = networks.reconstruct(x)
    assert again.shape == x.shape and again.dtype == np.uint8
    samples = networks.sample(3, seed=1)
    assert samples.shape == (3, 32, 32, 3) and samples.dtype == np.uint8
    assert np.array_equal(samples, networks.sample(3, seed=1))
    assert not np.array_equal(samples, networks.sample(3, seed=2))
    for wrong in (x[0], x[:, :16], x.astype(np.float32)):
        with pytest.raises(UserError, match=r"uint8 of shape \(N, 32, 32, 3\)"):
            networks.encode(wrong)


def test_points_of_the_mixture(saved):
    networks, x = saved(Config(data="mixture", width=0.1, train_size=500))
    assert networks.sample(4).shape == (4, 1, 1, 2) and networks.sample(4).dtype == np.float32
    assert networks.reconstruct(x).shape == x.shape and networks.encode(x).shape == (len(x), 2)


def test_a_gan_samples_only(saved):
    networks, x = saved(Config(model="gan", width=0.1, train_size=500, labels=100))
    assert networks.sample(2).shape == (2, 32, 32, 3)
    with pytest.raises(UserError, match="no encoder"):
        networks.encode(x)
