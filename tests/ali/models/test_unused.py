"""Settings without effect: which they are, by training with and without them."""

from dataclasses import fields
from typing import get_args

import pytest
import torch

from ali import experiment
from ali.catalog import KINDS, Model
from ali.config import Config, DataName
from ali.errors import UserError
from ali.models.unused import refuse_unused, without_effect
from tests.ali.noise import bits, noise

# Another value than the default, of every field of which it depends whether it is read.
OTHER = {"bn_x": (True, False, True, False, True), "draw": 1}
OTHER |= {f"bn_{part}": True for part in ("z", "xz")}
OTHER |= {f"dropout_{part}": 0.4 for part in ("x", "z", "xz")}
OTHER |= {f"slope_{who}": 0.25 for who in ("encoder", "decoder", "discriminator")}
OTHER |= {f"{name}_{who}": 0.01 for who in ("d", "g") for name in ("lr", "beta1", "beta2")}
OF_DATA = {"image_size": 64, "modes": 25}
PARTS = [model for model in get_args(Model) if KINDS[model].parts]


@pytest.fixture(scope="module")
def dataset():
    return noise()


@pytest.mark.parametrize("model", [*PARTS, "sdgm"])
def test_exactly_the_settings_named_change_nothing(model, dataset):
    small = {"width": 0.02, "labels": 20, "draws": 1, "batch_size": 20, "epochs": 1}
    base = Config.of_model(model).replace(**small, precision="fp32")

    def trained(config):
        state = experiment.new_state(config, dataset, torch.device("cpu"))
        ((state, _),) = experiment.run(config.replace(eval_every=2), dataset, state)
        return bits(state)

    one, named = trained(base), without_effect(base)
    assert named.keys() >= OF_DATA.keys()
    for name, value in OTHER.items():
        try:
            config = base.replace(**{name: value})
        except UserError:
            assert not KINDS[model].parts  # refused by Config for such a model
            continue
        two = trained(config)
        alike = one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
        assert alike == (name in named), name


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"data": "svhn", "image_size": 64}, "--image-size has no effect with --data svhn: leave"),
        ({"data": "svhn", "modes": 25}, "--modes has no effect with --data svhn"),
        ({"data": "mixture", "precision": "bf16"}, "--precision has no effect with --data mixture"),
        ({"data": "mixture", "dropout_x": 0.1}, "--dropout-x has no effect with --data mixture"),
        ({"data": "mixture", "bn_z": True}, "--bn-z has no effect with --data mixture"),
        ({"data": "cifar10", "slope_discriminator": 0.1}, "--slope-discriminator .* cifar10"),
        ({"draw": 1}, "--draw has no effect with --model ali"),
        ({"data": "mixture", "labels": 9}, "--labels has no effect with --data mixture"),
        ({"data": "celeba", "draws": 9}, "--draws has no effect with --data celeba without --attr"),
        ({"model": "gan", "dropout_z": 0.1}, "--dropout-z has no effect with --model gan"),
        ({"model": "gan", "slope_encoder": 0.1}, "--slope-encoder has no effect with --model gan"),
        ({"model": "sdgm", "bn_xz": True}, "--bn-xz has no effect with --model sdgm"),
        ({"model": "sdgm", "lr_d": 1e-3}, "--lr-d has no effect with --model sdgm"),
        ({"model": "convnet", "beta1_g": 0.9}, "--beta1-g has no effect with --model convnet"),
    ],
)
def test_a_setting_without_effect_is_refused_unless_the_run_has_it(settings, says):
    config = Config(**settings)
    assert Config.from_dict(config.to_dict()).data == config.data  # old files are read
    with pytest.raises(UserError, match=says):
        refuse_unused(config, without_effect(config))
    refuse_unused(config, without_effect(config), saved=config)


@pytest.mark.parametrize(
    "settings",
    [
        {"data": "mixture", "dropout_x": 0.1, "dropout_z": 0.1, "dropout_xz": 0.1},
        {"model": "convnet", "lr_d": 1e-3, "lr_g": 1e-3},
    ],
)
def test_one_value_for_a_group_is_accepted(settings):
    """A sweep's space may fix `dropout`; its trials' config.json is then read by `ali train`."""
    config = Config(**settings)
    refuse_unused(config, without_effect(config))


@pytest.mark.parametrize("model", get_args(Model))
@pytest.mark.parametrize("data", get_args(DataName))
def test_defaults_are_never_refused(model, data):
    """Files hold all fields; ALI's defaults, too, of a model whose authors chose others."""
    of_ali = {f.name: getattr(Config, f.name) for f in fields(Config)} | {"model": model}
    for config in (Config.of_model(model), Config(**of_ali | {"epochs": 2})):
        config = config.replace(data=data)
        refuse_unused(config, without_effect(config))
