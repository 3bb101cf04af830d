"""The compiled layers of narrow networks equal PyTorch's, in outputs, gradients and statistics."""

from __future__ import annotations

import os
import stat

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ali.config import Config
from ali.data import Images
from ali.models import layers, narrow
from ali.models.precision import cpu_multiplies_bf16
from ali.training import step
from ali.training.state import State
from tests.ali.models.test_layers import assert_same, random

BF16, FP32 = torch.bfloat16, torch.float32
compiled = pytest.mark.skipif(narrow._library(FP32) is None, reason="needs a C compiler")
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


@compiled
@dtypes
@pytest.mark.parametrize(("batch", "maps", "out", "size", "k", "stride"), SHAPES)
def test_convolution(dtype, batch, maps, out, size, k, stride):
    h, weight = random(batch, maps, size, size, dtype=dtype), random(out, maps, k, k, seed=1)
    bias = random(out, seed=2)
    plain = F.conv2d(h.float(), weight.to(dtype).float(), bias, stride)
    ours = narrow.conv(h, weight, bias, stride)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert_same(ours, plain, [h, weight, bias], dtype)


@compiled
@dtypes
@pytest.mark.parametrize(("batch", "out", "maps", "size", "k", "stride"), SHAPES)
def test_transposed_convolution(dtype, batch, maps, out, size, k, stride):
    h, weight = random(batch, maps, size, size, dtype=dtype), random(maps, out, k, k, seed=1)
    plain = F.conv_transpose2d(h.float(), weight.to(dtype).float(), None, stride)
    assert_same(narrow.tconv(h, weight, stride), plain, [h, weight], dtype)


@compiled
@dtypes
@pytest.mark.parametrize("shape", [(8, 4, 28, 28), (3, 5, 7, 7), (32, 64), (2, 2048), (5, 9, 2, 3)])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_batch_norm_leaky_relu_dropout(dtype, shape, p):
    h, gamma, beta = random(*shape, dtype=dtype), random(shape[1], seed=1), random(shape[1], seed=2)
    ours, plain = ((torch.zeros(shape[1]), torch.ones(shape[1])) for _ in range(2))

    def fused() -> Tensor:
        rng = torch.Generator().manual_seed(3)
        return layers.batch_norm_leaky_relu_dropout(h, ours, gamma, beta, 0.1, p, rng)

    made = fused()
    assert type(made.grad_fn).__name__ == "_BatchNormBackward"
    expected = F.batch_norm(h.float(), *plain, gamma, beta, True, 0.05, 1e-4)
    expected = F.leaky_relu(expected, 0.1)
    if p:
        mask = layers.dropout_multiplier(h, p, torch.Generator().manual_seed(3))
        expected = expected * mask
    assert_same(made, expected, [h, gamma, beta], dtype)
    for a, b in zip(ours, plain, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    assert torch.equal(made, fused())


@compiled
def test_statistics_far_from_zero_do_not_cancel():
    h = 1000 + random(64, 4, 28, 28).detach()
    ones, zeros = torch.ones(4), torch.zeros(4)
    running = torch.zeros(4), torch.ones(4)
    made = narrow.batch_norm_leaky_relu(h, running, ones, zeros, 1.0, 1e-4, 1.0, None)
    assert made.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    assert torch.allclose(running[1], h.double().var(dim=(0, 2, 3)).float(), rtol=1e-4)


@compiled
@dtypes
def test_non_finite_values_are_not_masked(dtype):
    h = random(2, 4, 8, 8, dtype=dtype).detach()
    h[1, 2, 3, 3] = float("nan")
    multiplier = torch.zeros_like(h)
    ones, zeros = torch.ones(4), torch.zeros(4)
    assert narrow.leaky_relu(h, 0.1, multiplier)[1, 2, 3, 3].isnan()
    running = torch.zeros(4), torch.ones(4)
    assert (
        narrow.batch_norm_leaky_relu(h, running, ones, zeros, 0.1, 1e-4, 0.1, multiplier)[:, 2]
        .isnan()
        .all()
    )
    assert narrow.conv(h, random(5, 4, 3, 3).detach(), None, 1)[1].isnan().any()


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
def test_gradients_are_left_out_where_they_are_not_asked_for(monkeypatch):
    """L_d needs none of x̃, and L_g none of D's weights."""
    h, weight = random(3, 6, 10, 10), random(8, 6, 4, 4, seed=1)
    out, call, called = narrow.conv(h, weight, None, 2).sum(), narrow._call, []
    monkeypatch.setattr(narrow, "_call", lambda *a: (called.append(a[0]), call(*a)))
    torch.autograd.grad(out, [h], retain_graph=True)
    torch.autograd.grad(out, [weight])
    assert called == ["convolve_transposed", "convolve_weights"]


@compiled
def test_one_of_several_threads_is_left_to_torch():
    h, weight = random(2, 3, 8, 8), random(4, 3, 3, 3, seed=1)
    assert type(layers.conv(h, weight, None, 1).grad_fn).__name__ == "_BothBackward"
    torch.set_num_threads(2)
    assert type(layers.conv(h, weight, None, 1).grad_fn).__name__ == "ConvolutionBackward0"


@pytest.fixture
def uncached():
    narrow._library.cache_clear()
    yield
    narrow._library.cache_clear()


def test_without_a_compiler_torch_does_it(uncached, monkeypatch):
    monkeypatch.setenv("ALI_CC", "no-such-compiler")
    h, weight = random(2, 3, 8, 8), random(4, 3, 3, 3, seed=1)
    assert torch.equal(layers.conv(h, weight, None, 1), F.conv2d(h, weight))
    narrow._library.cache_clear()
    monkeypatch.setenv("ALI_CC", "false")  # fails
    assert narrow._library(FP32) is None


@compiled
def test_what_others_can_write_to_is_not_run(uncached, monkeypatch, tmp_path):
    monkeypatch.setenv("ALI_CACHE", str(tmp_path))
    assert narrow._library(FP32) is not None
    (folder,) = tmp_path.iterdir()
    (library,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    library.write_text("another's")
    os.chmod(folder, 0o777)
    narrow._library.cache_clear()
    assert narrow._library(FP32) is not None  # compiled again, in a folder of its own
    assert library.read_text() == "another's"
