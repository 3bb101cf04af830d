"""Networks, images and checkpoints that tests of pictures use."""

import numpy as np
import torch

from ali.config import Config
from ali.data import Images
from ali.training.state import State

TINY = {"width": 0.05, "precision": "fp32", "batch_size": 2, "labels": 2, "balanced": False}
MIXTURE = Config(data="mixture", width=0.1, precision="fp32")
SIZES = {"house-numbers": 32, "cifar10": 32, "svhn": 32, "celeba": 64, "tiny-imagenet": 64}


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


def tile(picture, size, row, column):
    pitch = size + 2
    rows = slice(2 + pitch * row, pitch * (row + 1))
    return picture[rows, 2 + pitch * column : pitch * (column + 1)]
