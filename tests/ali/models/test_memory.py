"""What training is expected to take of a GPU's memory."""

import gc

import pytest
import torch

from ali import experiment
from ali.config import Config
from ali.models import memory, networks
from ali.models.chain import Layer
from tests.ali.noise import noise

CONFIGS = [
    Config(data="svhn"),
    Config(data="svhn", width=0.25, levels=3, batch_size=32),
    Config(data="cifar10", width=0.5, batch_size=50),
    Config(data="tiny-imagenet", width=0.25, batch_size=40),
    Config(data="mixture"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_weights_and_activations_are_those_of_the_networks(config):
    built = networks.build(config)
    layers = [layer for layer in built.modules() if isinstance(layer, Layer)]
    upper = {*built.encoder.upper.modules(), *built.decoder.upper.modules()}
    lowest = [layer for layer in layers if layer not in upper]
    twice = set(built.discriminator.modules())
    outputs = sum((1 + (one in twice)) * one.row.maps * one.size**2 for one in lowest)
    weights = sum(layer.weight.numel() for layer in lowest)
    expected = memory.CONTEXT + memory.A_WEIGHT * weights
    expected += memory.AN_ACTIVATION * config.batch_size * outputs + 1000
    expected += memory.EVALUATED * max(one.row.maps * one.size**2 for one in lowest)
    assert memory.gpu_memory(config, 1000) == expected


def test_of_other_models_nothing_is_known():
    assert memory.gpu_memory(Config.of_model("sdgm"), 0) is None


@pytest.mark.cuda
@pytest.mark.parametrize("config", CONFIGS[:2], ids=str)
def test_training_takes_no_more_than_is_expected(config):
    """With evaluation; CUDA's own part is that of this process."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    config = config.replace(batch_size=20, epochs=1, labels=20, draws=1)
    dataset = noise()
    list(experiment.run(config, dataset, device=torch.device("cuda")))
    free, total = torch.cuda.mem_get_info()
    taken = total - free - torch.cuda.memory_reserved() + torch.cuda.max_memory_reserved()
    assert taken < memory.gpu_memory(config, dataset.train.x.nbytes) < taken + 2**30
