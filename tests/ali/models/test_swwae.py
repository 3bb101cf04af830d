"""The what-where autoencoder: sizes, switches, which term reaches which weights, gradients."""

import pytest
import torch
import torch.nn.functional as F

from ali.config import Config
from ali.errors import UserError
from ali.models.base import Noise
from ali.models.registry import create
from tests.ali.models.test_vae import F64, check_gradients, parameters, untouched
from tests.ali.training.states import images

SMALL = Config(model="swwae", width=0.05, precision="fp32")


def made(config=SMALL):
    return create(config, images().x, 10, torch.Generator().manual_seed(0), torch.float32)


def batch(seed, n=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, 32, 32, generator=generator), torch.arange(n)


def noise():
    return Noise(torch.Generator().manual_seed(0), torch.device("cpu"))


def gradients(config, both=True):
    networks = made(config)
    x_l, y = batch(1)
    (loss,) = networks.losses(batch(2)[0], (x_l, y), noise())
    named = dict(networks.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return networks, dict(zip(named, found, strict=True))


def test_sizes():
    networks = untouched(Config(model="swwae"))
    assert parameters(networks.stages) == 1_042_560
    assert parameters(networks.classifier) == 40_970


def test_switches_restore_positions():
    """unpool(pool(h)) is h where it was largest, 0 elsewhere; pool(unpool(·)) changes nothing."""
    h = torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    what, where = F.max_pool2d(h, 2, return_indices=True)
    back = F.max_unpool2d(what, where, [2, 2])
    assert torch.equal(back[back > 0], h[back > 0]) and back.sum() == what.sum()
    assert ((back > 0).sum((2, 3)) == 16).all()
    again, place = F.max_pool2d(back, 2, return_indices=True)
    assert torch.equal(again, what) and torch.equal(place, where)
    alike = F.max_pool2d(torch.ones(1, 1, 4, 4), 2, return_indices=True)
    assert F.max_unpool2d(*alike, [2, 2]).sum() == 4  # ties: one of them


def test_what_is_decoded_lands_where_it_was():
    """The top stage's input to its first convolution has the maxima in their places."""
    networks, seen = made(), []
    whats, wheres = networks.up(batch(0)[0])
    first = networks.mirrored[-1][0]
    original, F_conv2d = first.weight, F.conv2d

    def spy(h, weight, *rest, **more):
        if weight is original or torch.equal(weight, original):
            seen.append(h)
        return F_conv2d(h, weight, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "conv2d", spy)
        networks.down(whats[-1], wheres)
    assert torch.equal(F.max_pool2d(seen[0], 2), whats[-1])
    flat = seen[0].flatten(2).gather(2, wheres[-1].flatten(2))
    assert torch.equal(flat, whats[-1].flatten(2))


def test_without_reconstruction_it_is_a_plain_classifier():
    plain = SMALL.replace(reconstruction_weight=0.0, middle_weight=0.0, dropout_fc=0.0)
    networks, found = gradients(plain)
    x_l, y = batch(1)
    h = 2 * x_l - 1
    for stage in networks.stages:
        for layer in stage:
            h = F.relu(layer(h))
        h = F.max_pool2d(h, 2)
    error = F.cross_entropy(networks.classifier(h.flatten(1)), y)
    named = {k: w for k, w in networks.named_parameters() if not k.startswith("mirrored")}
    reference = torch.autograd.grad(error, list(named.values()))
    for name, expected in zip(named, reference, strict=True):
        assert torch.allclose(found[name], expected, rtol=1e-4, atol=1e-6), name
    assert all(g is None or g.abs().max() == 0 for k, g in found.items() if "mirrored" in k)


def test_unlabelled_images_reach_no_weight_of_the_classifier():
    """The gradient of the last layer is the same whatever they are."""
    networks, found = gradients(SMALL.replace(dropout_fc=0.0))
    (loss,) = networks.losses(batch(7)[0], batch(1), noise())
    weights = list(networks.classifier.parameters())
    other = torch.autograd.grad(loss, weights)
    for name, gradient in zip(("weight", "bias"), other, strict=True):
        assert torch.allclose(found[f"classifier.{name}"], gradient)


def test_dropout_is_before_the_last_layer_and_in_training_alone():
    networks = made(SMALL.replace(dropout_fc=0.9))
    losses = {made(SMALL.replace(dropout_fc=p)).losses(batch(2)[0], batch(1), noise())[0].item()
              for p in (0.0, 0.9)}  # fmt: skip
    assert len(losses) == 2
    x = batch(0)[0]
    assert torch.equal(networks.class_scores(x, None), made().class_scores(x, None))


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    networks = made(SMALL.replace(width=0.02, dropout_fc=0.0))
    networks.double().compute_in(F64)
    for name, weight in networks.named_parameters():
        if "bias" in name:  # at 0, where nothing goes up, ReLUs would be at their kink
            torch.nn.init.normal_(weight, 0, 0.1)
    x_l, y = batch(1)

    def loss():
        return networks.losses(batch(2)[0].double(), (x_l.double(), y), noise())[0]

    check_gradients(loss, list(networks.parameters()), step=1e-8)  # no ReLU changes sides


def test_points_have_no_stages():
    with pytest.raises(UserError, match="swwae takes images"):
        create(SMALL.replace(data="mixture"), None, 9, torch.Generator(), torch.float32)
