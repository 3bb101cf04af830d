"""Algorithm 1 against a two-graph reference, its statistics, determinism, and how it fails."""

from __future__ import annotations

import copy
import importlib.util

import numpy as np
import pytest
import torch
from torch import Tensor

from ali.config import Config
from ali.data import Images
from ali.errors import NonFiniteError, UserError
from ali.metrics import D_LOSS, G_LOSS, IMAGES_PER_SECOND
from ali.models import layers
from ali.models.chain import Layer
from ali.training import step as training
from ali.training.losses import losses
from ali.training.state import State
from tests.paths import BENCHMARKS

STEP = BENCHMARKS / "step.py"
spec = importlib.util.spec_from_file_location("benchmarks_step", STEP)
assert spec is not None and spec.loader is not None
step = importlib.util.module_from_spec(spec)
spec.loader.exec_module(step)

SMALL = Config(width=0.125, batch_size=8, precision="fp32")
NO_DROPOUT = SMALL.replace(dropout_x=0.0, dropout_z=0.0, dropout_xz=0.0)
cuda = pytest.mark.cuda


def images(n: int = 40) -> Images:
    return Images(np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), None)


def fresh(config: Config = SMALL, device: str = "cpu") -> State:
    state = State.create(config, images(), device)
    with torch.no_grad():  # past the start, where every gradient is tiny
        for layer in state.networks.modules():
            if isinstance(layer, Layer):
                layer.weight.mul_(5)
    return state


def batch(m: int = 8) -> Tensor:
    x = torch.rand(m, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    return x.contiguous(memory_format=torch.channels_last)


def weights(state: State) -> list[Tensor]:
    return [tensor.clone() for tensor in state.networks.state_dict().values()]


def noise(state: State, m: int) -> tuple[Tensor, Tensor]:
    """The ε and z of the next step, (m, z, 1, 1) each, without drawing them from the state."""
    generator = torch.Generator()
    generator.set_state(state.generator.get_state())
    epsilon, z = (torch.randn(m, 256, generator=generator) for _ in range(2))
    return epsilon[:, :, None, None], z[:, :, None, None]


@pytest.mark.parametrize("bn_z", [False, True])
def test_gradients_equal_two_separate_graphs(bn_z, monkeypatch):
    """One for each loss, in plain torch, where the other's networks count as constants."""
    state = fresh(NO_DROPOUT.replace(bn_z=bn_z, bn_xz=bn_z))
    x, (epsilon, z) = batch(), noise(state, 8)
    plain = step.Plain(state.networks).train()

    def logits(constant: bool) -> Tensor:
        mu, log_sigma = plain.encode(x)
        z_hat, x_tilde = mu + log_sigma.exp() * epsilon, plain.decode(z)
        if constant:
            z_hat, x_tilde = z_hat.detach(), x_tilde.detach()
        return plain.discriminate(torch.cat([x, x_tilde]), torch.cat([z_hat, z]))

    loss_d, _ = losses(*logits(constant=True).chunk(2))
    reference_d = torch.autograd.grad(loss_d, plain.discriminator_parameters())
    _, loss_g = losses(*logits(constant=False).chunk(2))
    reference_g = torch.autograd.grad(loss_g, plain.generator_parameters())

    taken: list[tuple[Tensor, ...]] = []
    monkeypatch.setattr(training, "_update", lambda optimizer, theta, g: taken.append(g))
    ours = training.train_step(state, x)
    assert [a.item() for a in ours] == pytest.approx([loss_d.item(), loss_g.item()], rel=1e-5)
    for found, reference in zip(taken, (reference_d, reference_g), strict=True):
        for a, b in zip(found, reference, strict=True):
            assert b.abs().max() > 0
            assert (a - b).norm() <= 2e-3 * b.norm() + 1e-9


def test_both_gradients_are_taken_before_either_update(monkeypatch):
    state = fresh(NO_DROPOUT)
    before, seen = weights(state), []
    monkeypatch.setattr(training, "_update", lambda *_: seen.append(weights(state)))
    training.train_step(state, batch())
    names = list(state.networks.state_dict())
    for name, old, *new in zip(names, before, *seen, strict=True):
        if "running" not in name:
            assert all(torch.equal(old, now) for now in new)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_update_is_adam(precision, monkeypatch):
    """Three steps against torch's unfused Adam fed the same gradients (memory layouts included)."""
    config = SMALL.replace(precision=precision, lr_d=1e-3, beta1_d=0.3, beta2_g=0.9)
    state = fresh(config)
    names = {weight: name for name, weight in state.networks.named_parameters()}
    copies = dict(copy.deepcopy(state.networks).named_parameters())
    plain = {
        state.optimizer_d: ("discriminator", config.lr_d, config.beta1_d, config.beta2_d),
        state.optimizer_g: ("", config.lr_g, config.beta1_g, config.beta2_g),
    }
    reference: dict[torch.optim.Optimizer, torch.optim.Adam] = {}
    for optimizer, (_, lr, *betas) in plain.items():
        theta = [copies[names[w]] for w in optimizer.param_groups[0]["params"]]
        reference[optimizer] = torch.optim.Adam(theta, lr, betas=tuple(betas), foreach=False)
    update = training._update

    def spy(optimizer, theta, gradients):
        for weight, gradient in zip(theta, gradients, strict=True):
            copies[names[weight]].grad = gradient.clone()
        reference[optimizer].step()
        update(optimizer, theta, gradients)

    monkeypatch.setattr(training, "_update", spy)
    for _ in range(3):
        training.train_step(state, batch())
    for weight, name in names.items():
        assert torch.allclose(weight, copies[name], rtol=1e-5, atol=1e-7), name
        assert weight.grad is None


def test_running_statistics_come_from_the_mixed_batch():
    state = fresh(NO_DROPOUT)
    x, (epsilon, z) = batch(), noise(state, 8)
    plain = step.Plain(state.networks).train()
    training.train_step(state, x)
    with torch.no_grad():
        mu, log_sigma = plain.encode(x)
        z_hat, x_tilde = mu + log_sigma.exp() * epsilon, plain.decode(z)
        plain.discriminate(torch.cat([x, x_tilde]), torch.cat([z_hat, z]))
    ours = [layer for layer in state.networks.discriminator.x.rows if layer.row.bn]
    norms = [module for module in plain.d_x if isinstance(module, torch.nn.BatchNorm2d)]
    for layer, norm in zip(ours, norms, strict=True):
        assert torch.allclose(layer.running_mean, norm.running_mean, rtol=1e-3, atol=1e-6)
        assert torch.allclose(layer.running_var, norm.running_var, rtol=1e-3)
    alone = step.Plain(fresh(NO_DROPOUT).networks).train()
    alone.discriminate(x, z_hat)  # statistics of the encoder's pairs only are others
    other = next(m for m in alone.d_x if isinstance(m, torch.nn.BatchNorm2d))
    assert not torch.allclose(ours[0].running_mean, other.running_mean, rtol=1e-2, atol=1e-6)


def test_a_step_drops_inputs_of_every_layer_of_the_discriminator(monkeypatch):
    state, draw, least_kept, drawn, rates = fresh(), layers.dropout_words, layers.least_kept, [], []

    def spy(like, generator):
        drawn.append(len(like))
        assert generator is state.generator
        return draw(like, generator)

    monkeypatch.setattr(layers, "dropout_words", spy)
    monkeypatch.setattr(layers, "least_kept", lambda p: (rates.append(p), least_kept(p))[1])
    training.train_step(state, batch())
    # x and x̃ apart, then the other inputs of D(x); so for z; the three inputs of D(x, z)
    assert drawn == [8, 8, 16, 16, 16, 16, 8, 8, 16, 16, 16, 16]
    assert rates == [0.2] * 12


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_seed_determines_every_bit(precision):
    x = torch.from_numpy(images().x)
    runs = []
    for _ in range(2):
        state = State.create(SMALL.replace(precision=precision), images(), "cpu")
        metrics = [training.train_epoch(state, x) for _ in range(2)]
        torch.manual_seed(len(runs))  # the global generator plays no part
        runs.append((weights(state), [(m[D_LOSS], m[G_LOSS]) for m in metrics]))
    assert runs[0][1] == runs[1][1]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][0], runs[1][0], strict=True))
    other = State.create(SMALL.replace(precision=precision, seed=1), images(), "cpu")
    assert training.train_epoch(other, x)[D_LOSS] != runs[0][1][0][0]


def test_an_epoch_reports_and_counts():
    state = fresh()
    metrics = training.train_epoch(state, torch.from_numpy(images(43).x))
    assert (state.epoch, state.step) == (1, 5)  # 43 // 8: the short batch is dropped
    assert metrics.keys() == {D_LOSS, G_LOSS, IMAGES_PER_SECOND}
    assert metrics[IMAGES_PER_SECOND] > 0


def test_the_discriminator_learns_to_tell_noise_from_constant_images():
    """Its loss falls below 2 log 2, the value of an undecided one, once it is trained faster."""
    state = State.create(SMALL.replace(lr_d=1e-3, lr_g=1e-6), images(), "cpu")
    x = torch.from_numpy(images().x)
    first = training.train_epoch(state, x)[D_LOSS]
    for _ in range(4):
        last = training.train_epoch(state, x)[D_LOSS]
    assert last < 0.8 * first


def test_a_non_finite_loss_is_raised_with_its_step_and_names():
    state = fresh()
    x = torch.from_numpy(images().x)
    training.train_epoch(state, x)
    with torch.no_grad():
        state.networks.decoder.layers.rows[2].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError) as caught:
        training.train_epoch(state, x)
    assert caught.value.step == 5
    assert {D_LOSS, G_LOSS, "decoder.layers.2.weight"} <= set(caught.value.what)
    assert state.epoch == 1


def test_a_non_finite_weight_is_raised_at_the_end_of_the_epoch(monkeypatch):
    state, done = fresh(), training.train_step

    def poisoned(state, x):
        result = done(state, x)
        if state.step == 5:
            with torch.no_grad():
                state.networks.encoder.layers.rows[0].gamma[0] = float("inf")
        return result

    monkeypatch.setattr(training, "train_step", poisoned)
    with pytest.raises(NonFiniteError) as caught:
        training.train_epoch(state, torch.from_numpy(images().x))
    assert (caught.value.step, caught.value.what) == (5, ("encoder.layers.0.gamma",))


def test_too_few_images_for_a_batch_are_the_users_mistake():
    with pytest.raises(UserError, match="--batch-size"):
        training.train_epoch(fresh(), torch.from_numpy(images(7).x))


@cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cuda_never_waits_for_the_host_within_an_epoch(precision):
    state = fresh(SMALL.replace(precision=precision), "cuda")
    x = torch.rand(8, 3, 32, 32, device="cuda")
    training.train_step(state, x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        training.train_step(state, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not training.non_finite(state)


@cuda
def test_cuda_gradients_are_the_cpus(monkeypatch):
    taken: list[tuple[Tensor, ...]] = []
    monkeypatch.setattr(training, "_update", lambda optimizer, theta, g: taken.append(g))
    monkeypatch.setattr(
        torch, "randn", lambda shape, generator, device: torch.ones(shape, device=device) / 2
    )
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for device in ("cpu", "cuda"):
            training.train_step(fresh(NO_DROPOUT, device), batch().to(device))
    for cpu, gpu in zip(taken[0] + taken[1], taken[2] + taken[3], strict=True):
        assert (cpu - gpu.cpu()).norm() <= 2e-2 * cpu.norm() + 1e-9
