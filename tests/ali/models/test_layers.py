"""Every fast form equals plain torch: outputs and gradients, in fp32 and, loosely, in bf16."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ali.models import layers, narrow

BF16, FP32 = torch.bfloat16, torch.float32
TOLERANCE = {FP32: 1e-5, BF16: 3e-2}


@pytest.fixture(autouse=True)
def torchs_own_operations():
    """Not those of ali.models.narrow, which has tests of its own."""
    with narrow.left_out():
        yield


def random(*shape: int, dtype: torch.dtype = FP32, seed: int = 0) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    if made.dim() == 4:
        made = made.contiguous(memory_format=torch.channels_last)
    return made.requires_grad_()


def assert_same(ours: Tensor, plain: Tensor, inputs: list[Tensor], dtype: torch.dtype) -> None:
    """Equal values and equal gradients of a random linear function of the output."""
    assert ours.shape == plain.shape
    g = torch.randn(plain.shape, generator=torch.Generator().manual_seed(9)).to(plain.dtype)
    pairs = [(ours, plain)]
    pairs += zip(
        torch.autograd.grad(ours, inputs, g.to(ours.dtype)),
        torch.autograd.grad(plain, inputs, g),
        strict=True,
    )
    for a, b in pairs:
        error = (a.float() - b.float()).abs().max() / b.float().abs().max()
        assert error < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("maps", "size", "k", "stride"),
    [(3, 32, 5, 1), (5, 28, 4, 2), (6, 10, 4, 2), (7, 4, 4, 1), (6, 9, 3, 2), (3, 11, 4, 2)],
)
def test_conv(dtype, bias, maps, size, k, stride):
    h, weight = random(3, maps, size, size, dtype=dtype), random(8, maps, k, k, dtype=dtype, seed=1)
    b = random(8, dtype=dtype, seed=2) if bias else None
    ours = layers.conv(h, weight, b, stride)
    plain = F.conv2d(h.float(), weight.float(), None if b is None else b.float(), stride)
    if size == k:
        plain = plain.flatten(1)
    assert_same(ours, plain, [h, weight] + ([b] if b is not None else []), dtype)


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_conv_of_a_point(dtype):
    h, weight = random(3, 6, dtype=dtype), random(8, 6, 1, 1, dtype=dtype, seed=1)
    plain = F.conv2d(h.float()[:, :, None, None], weight.float()).flatten(1)
    assert_same(layers.conv(h, weight, None, 1), plain, [h, weight], dtype)


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize(
    ("maps", "size", "k", "stride"), [(5, 1, 4, 1), (6, 4, 4, 2), (6, 10, 4, 1), (3, 13, 4, 2)]
)
def test_tconv(dtype, maps, size, k, stride):
    h, weight = random(3, maps, size, size, dtype=dtype), random(maps, 8, k, k, dtype=dtype, seed=1)
    ours = layers.tconv(h.flatten(1) if size == 1 else h, weight, stride)
    plain = F.conv_transpose2d(h.float(), weight.float(), None, stride)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert_same(ours, plain, [h, weight], dtype)


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function == torch.ops.aten.mm.default
        return function(*args, **(kwargs or {}))


def test_weight_gradients_are_left_out_where_they_are_not_asked_for():
    """L_g goes through D without D's weight gradients."""
    h, weight = random(3, 6, 10, 10, dtype=BF16), random(8, 6, 4, 4, dtype=BF16, seed=1)
    out = layers.conv(h, weight, None, 2).sum()
    for wanted, products in ([h], 0), ([h, weight], 1):
        with Products() as counted:
            torch.autograd.grad(out, wanted, retain_graph=True)
        assert counted.count == products


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("shape", [(4, 5, 6, 6), (8, 7)])
@pytest.mark.parametrize("slope", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("p", [0.0, 0.2])
def test_leaky_relu_dropout(dtype, shape, slope, p):
    h = random(*shape, dtype=dtype)
    ours = layers.leaky_relu_dropout(h, slope, p, torch.Generator().manual_seed(3))
    plain = F.leaky_relu(h.float(), slope)
    if p:  # the same mask
        mask = layers.dropout_multiplier(h, p, torch.Generator().manual_seed(3))
        assert 0 < (mask == 0).sum() < mask.numel()
        plain = plain * mask
    assert_same(ours, plain, [h], dtype)


def test_without_a_generator_nothing_is_dropped():
    h = random(4, 5)
    assert layers.dropout(h, 0.5, None) is h
    assert torch.equal(layers.leaky_relu_dropout(h, 0.1, 0.5, None), F.leaky_relu(h, 0.1))


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("p", [0.001, 0.2, 0.5, 0.9])
def test_dropout_rate_and_scale(dtype, p):
    like = torch.empty(64, 8, 25, 25, dtype=dtype).contiguous(memory_format=torch.channels_last)
    mask = layers.dropout_multiplier(like, p, torch.Generator().manual_seed(0))
    assert mask.shape == like.shape and mask.dtype == dtype and mask.stride() == like.stride()
    values = mask.float().unique()
    assert values[0] == 0 and len(values) == 2
    assert values[1].item() == pytest.approx(1 / (1 - p), rel=1e-6 if dtype == FP32 else 4e-3)
    n = like.numel()
    deviation = 4 * (p * (1 - p) / n) ** 0.5 + 2**-16
    assert (mask == 0).float().mean().item() == pytest.approx(p, abs=deviation)
    # each of the four 16-bit parts of a word alike: the default range of random_ fails here
    for part in range(4):
        share = (mask.permute(0, 2, 3, 1).flatten()[part::4] == 0).float().mean().item()
        assert share == pytest.approx(p, abs=2 * deviation)


def test_dropout_masks_follow_the_generator_alone():
    like = torch.empty(7, 3, 5, 5)
    generator = torch.Generator().manual_seed(1)
    first = layers.dropout_multiplier(like, 0.5, generator)
    torch.manual_seed(0)
    again = layers.dropout_multiplier(like, 0.5, torch.Generator().manual_seed(1))
    assert torch.equal(first, again)
    assert not torch.equal(first, layers.dropout_multiplier(like, 0.5, generator))


def test_non_finite_values_are_not_masked():
    h = torch.tensor([[float("nan"), float("inf"), 1.0]]).repeat(50, 1)
    for p in (0.0, 0.5):
        out = layers.leaky_relu_dropout(h, 0.01, p, torch.Generator().manual_seed(0))
        assert out[:, 0].isnan().all()
        assert not out[:, 1].isfinite().all()
