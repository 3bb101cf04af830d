"""The compiled layers equal PyTorch's, in outputs, gradients and statistics."""

from __future__ import annotations

import gc
import os
import stat

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ali.config import Config
from ali.data import Images
from ali.models import layers, narrow, narrow_library
from ali.models.narrow_chain import Recorder
from ali.models.precision import cpu_multiplies_bf16
from ali.training import step
from ali.training.state import State
from tests.ali.models.test_layers import assert_same, random

BF16, FP32 = torch.bfloat16, torch.float32
compiled = pytest.mark.skipif(narrow_library.library(FP32) is None, reason="needs a C compiler")
dtypes = pytest.mark.parametrize(
    "dtype",
    [
        FP32,
        pytest.param(
            BF16, marks=pytest.mark.skipif(not cpu_multiplies_bf16(), reason="needs AVX512-BF16")
        ),
    ],
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SHAPES = [  # batch, maps in, maps out, pixels, kernel, stride: Table 3's at 1/8, then odd ones
    (4, 3, 4, 32, 5, 1),
    (4, 4, 8, 28, 4, 2),
    (4, 8, 16, 13, 4, 1),
    (4, 16, 32, 10, 4, 2),
    (4, 4, 3, 32, 1, 1),
    (2, 3, 8, 64, 2, 1),
    (3, 9, 10, 29, 7, 2),
    (1, 1, 1, 6, 4, 2),
    (2, 5, 7, 11, 3, 3),
    (1, 32, 31, 5, 2, 1),
    (2, 4, 8, 29, 4, 2),  # the last row and column of the input count for nothing
]


def chain(*parts: Tensor, p: float = 0.0) -> Recorder:
    return Recorder(parts, p, torch.Generator().manual_seed(3))


@compiled
@dtypes
@pytest.mark.parametrize(("batch", "maps", "out", "size", "k", "stride"), SHAPES)
def test_convolution(dtype, batch, maps, out, size, k, stride):
    h, weight = random(batch, maps, size, size, dtype=dtype), random(out, maps, k, k, seed=1)
    bias = random(out, seed=2)
    plain = F.conv2d(h.float(), weight.to(dtype).float(), bias, stride)
    (ours := chain(h)).conv(weight, bias, stride)
    assert type(ours.steps[0]).__name__ == ("_Linear" if k == 1 else "_Convolution")
    assert ours.h.is_contiguous(memory_format=torch.channels_last)
    assert_same(ours.outputs()[1], plain, [h, weight, bias], dtype)


@compiled
@dtypes
@pytest.mark.parametrize(("batch", "out", "maps", "size", "k", "stride"), SHAPES)
def test_transposed_convolution(dtype, batch, maps, out, size, k, stride):
    h, weight = random(batch, maps, size, size, dtype=dtype), random(maps, out, k, k, seed=1)
    plain = F.conv_transpose2d(h.float(), weight.to(dtype).float(), None, stride)
    (ours := chain(h)).tconv(weight, stride)
    assert_same(ours.outputs()[1], plain, [h, weight], dtype)


PRODUCTS = [(4, 16, 32), (32, 64, 512), (5, 7, 3), (1, 1, 1), (64, 128, 1), (3, 33, 50), (48, 3, 4)]


@compiled
@dtypes
@pytest.mark.parametrize(("batch", "maps", "out"), PRODUCTS)
def test_linear(dtype, batch, maps, out):
    h, weight = random(batch, maps, dtype=dtype), random(out, maps, 1, 1, seed=1)
    bias = random(out, seed=2)
    plain = F.linear(h.float(), weight.to(dtype).float().flatten(1), bias)
    (ours := chain(h)).conv(weight, bias, 1)
    assert_same(ours.outputs()[1], plain, [h, weight, bias], dtype)


@compiled
@dtypes
@pytest.mark.parametrize(("batch", "maps", "out"), PRODUCTS)
def test_from_one_pixel_and_to_one(dtype, batch, maps, out):
    h, weight = random(batch, maps, dtype=dtype), random(maps, out, 4, 4, seed=1)
    plain = F.conv_transpose2d(h.float()[:, :, None, None], weight.to(dtype).float())
    (ours := chain(h)).tconv(weight, 1)
    assert_same(ours.outputs()[1], plain, [h, weight], dtype)
    h, weight = random(batch, maps, 4, 4, dtype=dtype), random(out, maps, 4, 4, seed=1)
    plain = F.conv2d(h.float(), weight.to(dtype).float()).flatten(1)
    (ours := chain(h)).conv(weight, None, 1)
    assert_same(ours.outputs()[1], plain, [h, weight], dtype)


@compiled
@dtypes
@pytest.mark.parametrize("shape", [(8, 4, 28, 28), (3, 5, 7, 7), (32, 64), (2, 2048), (5, 9, 2, 3)])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_batch_norm_leaky_relu_dropout(dtype, shape, p):
    h, gamma, beta = random(*shape, dtype=dtype), random(shape[1], seed=1), random(shape[1], seed=2)
    ours, plain = ((torch.zeros(shape[1]), torch.ones(shape[1])) for _ in range(2))

    def fused() -> Tensor:
        # an operation that changes nothing comes first, as a chain begins with one
        (made := chain(h)).by_autograd(lambda h: h * 1, [])
        made.batch_norm_leaky_relu_dropout(ours, gamma, beta, 0.1, p)
        return made.outputs()[1]

    made = fused()
    expected = F.batch_norm(h.float(), *plain, gamma, beta, True, 0.05, 1e-4)
    expected = F.leaky_relu(expected, 0.1)
    if p:
        mask = layers.dropout_multiplier(h, p, torch.Generator().manual_seed(3))
        expected = expected * mask
    assert_same(made, expected, [h, gamma, beta], dtype)
    for a, b in zip(ours, plain, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    assert torch.equal(made, fused())


def statistics(h: Tensor, activation: narrow.Activation) -> tuple[Tensor, Tensor]:
    """The output, and the variance, of batch norm without weights."""
    ones, zeros = torch.ones(h.shape[1]), torch.zeros(h.shape[1])
    running = zeros.clone(), ones.clone()
    out, _ = narrow.normalise(h, running, ones, zeros, 1.0, 1e-4, activation)
    return out, running[1]


@compiled
@pytest.mark.parametrize("outlier", [0.0, 3000.0])
def test_statistics_far_from_zero_do_not_cancel(outlier):
    h = 1000 + random(64, 4, 28, 28).detach()
    h[0, :, 0, :] += outlier  # the first rows are those that the others' deviations are taken from
    made, variance = statistics(narrow.packed(h), narrow.activation(1.0))
    assert made.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    assert torch.allclose(variance, h.double().var(dim=(0, 2, 3)).float(), rtol=1e-4)


@compiled
def test_a_constant_map_has_no_variance():
    made, variance = statistics(torch.full((8, 4), 0.1), narrow.activation(1.0))
    assert made.abs().max() < 1e-4 and variance.abs().max() < 1e-12


@compiled
@dtypes
def test_non_finite_values_are_not_masked(dtype):
    h = narrow.packed(random(2, 4, 8, 8, dtype=dtype).detach())
    h[1, 2, 3, 3] = float("nan")
    nothing_kept = narrow.activation(0.1, torch.zeros(h.numel(), dtype=torch.int16), 1, 2.0)
    assert narrow.activate(h, h, nothing_kept)[1, 2, 3, 3].isnan()
    assert statistics(h, nothing_kept)[0][:, 2].isnan().all()
    weight = random(5, 4, 3, 3).detach()
    assert narrow.conv(h, weight, None, narrow.conv_sizes(h, weight, 1))[1].isnan().any()
    vectors = h.permute(0, 2, 3, 1).reshape(128, 4)
    assert narrow.linear(vectors, random(3, 4).detach()).isnan().sum() <= 3 * 4


def state(**changes: object) -> State:
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    config = Config(width=0.125, batch_size=8, precision="fp32", weight_std=0.05).replace(**changes)
    made = State.create(config, Images(images, None), "cpu")
    made.networks.train()
    return made


@compiled
@pytest.mark.parametrize("data", ["house-numbers", "cifar10"])
def test_a_step_equals_that_of_torchs_own_operations(data, monkeypatch):
    taken: list[list[Tensor]] = []
    monkeypatch.setattr(step, "_update", lambda optimizer, theta, g: taken.append(g))
    x = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    ours = step.train_step(fast := state(data=data), x)
    with narrow.left_out():
        plain = step.train_step(slow := state(data=data), x)
    assert [a.item() for a in ours] == pytest.approx([a.item() for a in plain], rel=1e-5)
    for a, b in zip(taken[0] + taken[1], taken[2] + taken[3], strict=True):
        assert (a - b).norm() <= 2e-3 * b.norm() + 1e-9
    for (name, a), b in zip(fast.networks.named_buffers(), slow.networks.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-6), name


@compiled
def test_parts_are_dropped_out_each_and_get_their_own_gradients():
    """As D's inputs x and x̃, of which only x̃ needs a gradient."""
    x, x_tilde = random(3, 2, 6, 6).detach(), random(2, 2, 6, 6, seed=4)
    weight = random(5, 2, 3, 3, seed=1)
    (ours := chain(x, x_tilde, p=0.4)).conv(weight, None, 1)
    rng = torch.Generator().manual_seed(3)
    dropped = [h * layers.dropout_multiplier(h, 0.4, rng) for h in (x, x_tilde)]
    plain = F.conv2d(torch.cat(dropped), weight)
    assert_same(ours.outputs()[1], plain, [x_tilde, weight], FP32)


@compiled
def test_what_is_kept_has_gradients_too():
    """Feature matching trains the generator by D's last hidden layer alone."""
    h, first, second = random(4, 6), random(5, 6, 1, 1, seed=1), random(3, 5, 1, 1, seed=2)

    def recorded() -> tuple[Tensor | None, Tensor]:
        (made := chain(h)).conv(first, None, 1)
        made.leaky_relu_dropout(0.1, 0.0)
        made.keep()
        made.conv(second, None, 1)
        return made.outputs()

    hidden = F.leaky_relu(F.linear(h, first.flatten(1)), 0.1)
    kept, out = recorded()
    assert kept is not None
    plain = hidden.square().sum() + F.linear(hidden, second.flatten(1)).sum()
    assert_same(kept.square().sum() + out.sum(), plain, [h, first, second], FP32)
    kept, _ = recorded()
    assert kept is not None
    of_second = torch.autograd.grad(kept.sum(), [second, h], allow_unused=True)
    assert of_second[0] is None and of_second[1] is not None


@compiled
def test_gradients_are_left_out_where_they_are_not_asked_for(monkeypatch):
    """L_d needs none of x̃, and L_g none of D's weights; what both need is computed once."""
    h, weight, second = random(3, 6, 10, 10), random(8, 6, 4, 4, seed=1), random(4, 8, 4, 4, seed=2)
    (made := chain(h)).conv(weight, None, 2)
    made.conv(second, None, 1)
    out, call, called = made.outputs()[1].sum(), narrow.call, []
    monkeypatch.setattr(narrow, "call", lambda *a: (called.append(a[0]), call(*a)))
    torch.autograd.grad(out, [h], retain_graph=True)
    assert called == ["linear_transposed", "convolve_transposed"]
    called.clear()
    torch.autograd.grad(out, [weight, second], retain_graph=True)
    assert called == ["linear_weights", "linear_transposed", "convolve_weights"]
    called.clear()
    torch.autograd.grad(out, [h, weight, second])
    together = ["linear_weights", "linear_transposed", "convolve_weights", "convolve_transposed"]
    assert called == together


@compiled
def test_one_of_several_threads_is_left_to_torch():
    made = state()
    x = torch.rand(2, 3, 32, 32)
    assert type(made.networks.encoder.layers(x).grad_fn).__name__ == "_OfWeightsBackward"
    torch.set_num_threads(2)
    assert type(made.networks.encoder.layers(x).grad_fn).__name__ != "_OfWeightsBackward"


@compiled
def test_memory_is_freed_with_the_graph():
    made, x = state(), torch.rand(8, 3, 32, 32)
    step.train_step(made, x)
    gc.collect()
    gc.disable()
    try:
        step.train_step(made, x)
        assert not [found for found in gc.get_objects() if isinstance(found, Recorder)]
    finally:
        gc.enable()


@pytest.fixture
def uncached():
    narrow_library.library.cache_clear()
    yield
    narrow_library.library.cache_clear()


def test_without_a_compiler_torch_does_it(uncached, monkeypatch):
    monkeypatch.setenv("ALI_CC", "no-such-compiler")
    x = torch.rand(2, 3, 32, 32)
    assert type(state().networks.encoder.layers(x).grad_fn).__name__ != "_OfWeightsBackward"
    narrow_library.library.cache_clear()
    monkeypatch.setenv("ALI_CC", "false")  # fails
    assert narrow_library.library(FP32) is None


@compiled
def test_what_others_can_write_to_is_not_run(uncached, monkeypatch, tmp_path):
    monkeypatch.setenv("ALI_CACHE", str(tmp_path))
    assert narrow_library.library(FP32) is not None
    (folder,) = tmp_path.iterdir()
    (library,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    library.write_text("another's")
    os.chmod(folder, 0o777)
    narrow_library.library.cache_clear()
    assert narrow_library.library(FP32) is not None  # compiled again, in a folder of its own
    assert library.read_text() == "another's"
