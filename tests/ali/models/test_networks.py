"""The networks of Table 3: the authors' counts, initial values, plain torch as reference."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from ali.config import Config
from ali.errors import UserError
from ali.models import layers
from ali.models.chain import Layer
from ali.models.networks import build
from tests.paths import BENCHMARKS

STEP = BENCHMARKS / "step.py"
spec = importlib.util.spec_from_file_location("benchmarks_step", STEP)
assert spec is not None and spec.loader is not None
step = importlib.util.module_from_spec(spec)
spec.loader.exec_module(step)

SMALL = Config(width=0.25, batch_size=6)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Relative to the norm: batch norm enlarges what CPUs round differently, entry by entry."""
    assert (ours - theirs).norm() <= 1e-3 * theirs.norm()


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_are_the_authors():
    networks = build(Config())
    assert count(networks.encoder) == 3_315_488
    assert count(networks.decoder) == 1_767_584
    assert count(networks.discriminator) == 5_283_073


def test_a_step_costs_the_operations_that_are_counted():
    assert step.gflop_an_image(build(Config())) == pytest.approx(1.02, rel=0.03)


@pytest.mark.parametrize("std", [None, 0.03])
def test_initial_values(std):
    networks = build(Config(width=0.5, weight_std=std))
    expected = std or 0.01
    for layer in networks.modules():
        if isinstance(layer, Layer):
            n = layer.weight.numel()
            assert layer.weight.std().item() == pytest.approx(expected, rel=4 / (2 * n) ** 0.5)
            assert abs(layer.weight.mean().item()) < 4 * expected / n**0.5
            assert layer.bias is None or not layer.bias.any()
            if layer.row.bn:
                assert (layer.gamma == 1).all() and not layer.beta.any()


def test_the_decoder_starts_at_the_mean_image():
    mean = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean[0, 0, 0], mean[1, 1, 1] = 0.0, 1.0  # log-odds stay finite
    networks = build(SMALL, mean).eval()
    last = networks.decoder.layers.rows[-1]
    with torch.no_grad():
        last.weight.zero_()
        x_tilde = networks.decoder(torch.randn(2, 256))
    assert last.bias is not None and last.bias.isfinite().all()
    assert torch.allclose(x_tilde, mean.expand_as(x_tilde), atol=1e-6)


def test_seeds_give_the_same_weights_again():
    one, two, other = build(SMALL), build(SMALL), build(SMALL.replace(seed=1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.encoder.layers.rows[0].weight, other.encoder.layers.rows[0].weight)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bn", [False, True])
def test_fp32_networks_equal_plain_torch(training, bn):
    config = SMALL.replace(
        dropout_x=0.0, dropout_z=0.0, dropout_xz=0.0, bn_z=bn, bn_xz=bn, slope_decoder=0.2
    )
    config = config.replace(bn_x=(True, False, True, False, True)) if bn else config
    networks = build(config, torch.rand(3, 32, 32))
    with torch.no_grad():  # larger than at the start, so that differences show
        for weight in networks.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    plain = step.Plain(networks).train(training)
    networks.train(training)
    x, z = torch.rand(6, 3, 32, 32), torch.randn(6, 256)
    points = z[:, :, None, None]
    for ours, theirs in [
        (networks.encoder(x)[0], plain.encode(x)[0].flatten(1)),
        (networks.encoder(x)[1], plain.encode(x)[1].flatten(1)),
        (networks.decoder(z), plain.decode(points)),
        (networks.discriminator(x, z), plain.discriminate(x, points)),
    ]:
        assert_close(ours, theirs)


@pytest.mark.parametrize("data", ["cifar10", "celeba", "tiny-imagenet"])
def test_the_other_tables_equal_plain_torch(data):
    config = Config(data=data, width=0.1, dropout_x=0.0, dropout_z=0.0, dropout_xz=0.0)
    networks = build(config)
    with torch.no_grad():
        for weight in networks.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    plain = step.Plain(networks).train()
    x, z = torch.rand(16, *networks.table.image), torch.randn(16, networks.table.z)
    points = z[:, :, None, None]
    for ours, theirs in [
        (networks.require_encoder()(x)[0], plain.encode(x)[0].flatten(1)),
        (networks.decoder(z), plain.decode(points)),
        (networks.discriminator(x, z), plain.discriminate(x, points)),
    ]:
        assert_close(ours, theirs)


def test_a_pass_over_two_batches_is_one_over_their_concatenation():
    d = build(SMALL).discriminator.train()
    x, z = torch.rand(6, 3, 32, 32), torch.randn(6, 256)
    whole = d(x, z)
    apart = d.logits((x[:2], x[2:]), (z[:2], z[2:]))
    assert torch.allclose(whole, apart, atol=1e-6)
    assert not torch.allclose(whole[:2], d(x[:2], z[:2]), atol=1e-7)  # batch norm saw all six


def test_dropout_is_in_the_discriminator_alone_and_only_in_training():
    networks = build(SMALL).train()
    x, z = torch.rand(6, 3, 32, 32), torch.randn(6, 256)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        d = networks.discriminator
        assert not torch.equal(d(x, z, generator), d(x, z, generator))
        d.eval()
        assert torch.equal(d(x, z, generator), d(x, z, generator))


@pytest.mark.parametrize("part", ["x", "z", "xz"])
def test_every_layer_of_the_discriminator_drops_its_input(part, monkeypatch):
    """The masks drawn have the shapes of the inputs, pixels, z and the logit layer included."""
    from ali.models import layers

    rates = {f"dropout_{name}": 0.5 if name == part else 0.0 for name in ("x", "z", "xz")}
    drawn: list[tuple[int, ...]] = []
    draw = layers.dropout_words

    def spy(like, generator):
        drawn.append(tuple(like.shape[1:]))
        return draw(like, generator)

    monkeypatch.setattr(layers, "dropout_words", spy)
    d = build(Config(**rates)).discriminator.train()
    d(torch.rand(2, 3, 32, 32), torch.randn(2, 256), torch.Generator())
    assert (
        drawn
        == {
            "x": [(3, 32, 32), (32, 28, 28), (64, 13, 13), (128, 10, 10), (256, 4, 4)],
            "z": [(256,), (512,)],
            "xz": [(1024,), (1024,), (1024,)],
        }[part]
    )


def test_features_are_before_the_leaky_relu_and_end_in_mu():
    networks = build(Config()).eval()
    x = torch.rand(2, 3, 32, 32)
    features = networks.encoder.features(x)
    assert features.shape == (2, 5376) and features.dtype == torch.float32
    assert torch.equal(features[:, -256:], networks.encoder(x)[0])
    hidden = features[:, :-256]
    assert (hidden < 0).float().mean() > 0.2  # leaky ReLU at slope 0.01 would shrink these
    scaled = Config(slope_encoder=0.0)
    before_conv5 = build(scaled).eval().encoder.features(x)[:, :4096]
    assert (before_conv5 < 0).any()


@pytest.mark.parametrize("width", [0.25, 0.3, 1.0])
def test_bf16_networks_are_near_fp32(width):
    config = Config(width=width)
    exact, rounded = build(config), build(config, dtype=torch.bfloat16)
    x, z = torch.rand(16, 3, 32, 32), torch.randn(16, 256)
    with torch.no_grad():
        for a, b in [
            (exact.encoder(x)[0], rounded.encoder(x)[0]),
            (exact.decoder(z), rounded.decoder(z)),
            (exact.discriminator(x, z), rounded.discriminator(x, z)),
        ]:
            assert b.dtype == torch.float32
            assert (a - b).norm() < 0.05 * a.norm()


def test_table_2s_discriminator_has_the_authors_weights():
    discriminator = build(Config(data="cifar10")).discriminator
    assert sum(p.numel() for n, p in discriminator.named_parameters() if "weight" in n) == 2_607_968


@pytest.mark.parametrize("model", ["ali", "gan"])
@pytest.mark.parametrize("data", ["cifar10", "svhn", "celeba", "tiny-imagenet", "mixture"])
def test_every_table_builds_and_takes_its_images(data, model):
    config = Config(data=data, model=model, width=0.1)
    networks, rng = build(config), torch.Generator().manual_seed(0)

    def normal(shape):
        return torch.randn(shape, generator=rng)

    x = torch.rand(4, *networks.table.image, generator=rng)
    z = networks.decoder.sample_prior(4, normal)
    x_tilde = networks.decoder(*z)
    assert x_tilde.shape == x.shape
    if model == "gan":
        with pytest.raises(UserError, match="no encoder"):
            networks.require_encoder()
        assert networks.discriminator.logits((x, x_tilde), (), rng).shape == (8,)
    else:
        (z_hat,) = networks.require_encoder().sample(x, normal)
        assert z_hat.shape == z[0].shape == (4, networks.table.z)
        assert networks.discriminator.logits((x, x_tilde), (z_hat, *z), rng).shape == (8,)


def test_a_gans_features_are_pooled_to_4_by_4():
    networks = build(Config(model="gan", width=0.25)).eval()
    maps = [row.maps for row in networks.table.d_x]
    features = networks.features(torch.rand(3, 3, 32, 32))
    assert features.shape == (3, 16 * sum(maps[:-1]) + maps[-1])


def test_the_levels_above_the_first_see_all_below_and_x():
    networks = build(Config(levels=3, width=0.1)).eval()
    rng = torch.Generator().manual_seed(0)
    draw = torch.randn(2, 256, generator=rng), torch.randn(2, 256, generator=rng)

    def fixed(shape):
        return torch.zeros(shape)

    x = torch.rand(2, 3, 32, 32)
    z_hat = networks.require_encoder().sample(x, fixed)
    assert [part.shape for part in z_hat] == [(2, 256)] * 3
    assert torch.equal(z_hat[0], networks.require_encoder()(x)[0])  # no noise: μ
    other = networks.require_encoder().sample(1 - x, fixed)
    assert not torch.allclose(z_hat[2], other[2], rtol=1e-4, atol=0)
    one, two = (networks.decoder.sample_below(top, fixed) for top in draw)
    assert torch.equal(one[2], draw[0])
    assert not torch.allclose(one[0], two[0], rtol=1e-4, atol=0)
    assert networks.decoder(*one).shape == (2, 3, 32, 32)


def test_a_sigmoid_keeps_sigma_below_the_priors():
    """Of the same weights: exp gives log σ as it comes, sigmoid the logarithm of its sigmoid."""
    x, zero = torch.rand(4, 3, 32, 32), lambda shape: torch.zeros(shape)
    plain, bounded = (
        build(SMALL.replace(levels=2, sigma=sigma)).eval() for sigma in ("exp", "sigmoid")
    )
    for networks in (plain, bounded):
        last = networks.encoder.layers.rows[-1]
        with torch.no_grad():
            last.bias[len(last.bias) // 2 :] = torch.linspace(-50, 50, len(last.bias) // 2)
    (mu, free), (same_mu, below) = plain.encoder(x), bounded.encoder(x)
    assert torch.equal(mu, same_mu) and free.max() > 40 and below.max() <= 0
    assert torch.equal(below, torch.nn.functional.logsigmoid(free))
    for one, other in zip(
        plain.encoder.sample(x, zero), bounded.encoder.sample(x, zero), strict=True
    ):
        assert torch.equal(one, other), "the means are the same"
    z = [networks.decoder.sample_prior(4, torch.ones)[0] for networks in (plain, bounded)]
    assert torch.allclose(z[0] - z[1], torch.full_like(z[0], 0.5), atol=0.05), "σ starts at 1, 0.5"


@pytest.mark.parametrize("other", [{"model": "gan"}, {"model": "sdgm"}, {"data": "mixture"}])
def test_a_sigmoid_where_there_is_no_sigma_is_refused(other):
    with pytest.raises(UserError, match=r"^--sigma must be exp here"):
        Config(sigma="sigmoid", **other)
    Config(sigma="sigmoid", data="mixture", levels=2)


def test_maxout_is_the_maximum_of_neighbouring_maps():
    h = torch.randn(2, 6, 3, 3).to(memory_format=torch.channels_last)
    expected = torch.stack([h[:, 0:2].amax(1), h[:, 2:4].amax(1), h[:, 4:6].amax(1)], dim=1)
    assert torch.equal(layers.maxout(h, 2), expected)
    assert torch.equal(layers.maxout(h[:, :, 0, 0], 2), expected[:, :, 0, 0])
