"""What training is expected to take of a GPU's memory."""

import gc

import pytest
import torch

from ali.config import Config
from ali.models import memory, networks
from ali.models.chain import Layer
from ali.training import step
from ali.training.state import State
from tests.ali.noise import noise

CONFIGS = [
    Config(data="svhn"),
    Config(data="svhn", width=0.25, levels=3, batch_size=32),
    Config(data="cifar10", width=0.5, batch_size=50),
    Config(data="tiny-imagenet", width=0.25, batch_size=40),
    Config(data="mixture"),
]


@pytest.mark.parametrize("config", CONFIGS[:4], ids=str)
def test_weights_and_activations_are_those_of_the_networks(config):
    built = networks.build(config)
    layers = [layer for layer in built.modules() if isinstance(layer, Layer)]
    upper = {*built.encoder.upper.modules(), *built.decoder.upper.modules()}
    lowest = [layer for layer in layers if layer not in upper]
    twice = set(built.discriminator.modules())
    outputs = sum((1 + (one in twice)) * one.row.maps * one.size**2 for one in lowest)
    weights = sum(layer.weight.numel() for layer in lowest)
    expected = memory.CONTEXT + memory.A_WEIGHT * weights
    expected += memory.AN_ACTIVATION * config.batch_size * outputs
    assert memory.gpu_memory(config) == expected


@pytest.mark.cuda
@pytest.mark.parametrize("config", CONFIGS[:2], ids=str)
def test_training_takes_no_more_than_is_expected(config):
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    state = State.create(config, noise().train, "cuda")
    images = torch.zeros(4 * config.batch_size, 32, 32, 3, dtype=torch.uint8, device="cuda")
    step.train_epoch(state, images)
    taken = torch.cuda.max_memory_reserved()
    assert taken < memory.gpu_memory(config) < taken + 1.5 * 2**30
