"""Identities of the two losses."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from ali.training.losses import losses

logits = st.lists(st.floats(-50, 50), min_size=4, max_size=4).map(
    lambda v: torch.tensor(v, dtype=torch.float32)
)


def test_both_losses_are_2_log_2_where_the_discriminator_is_undecided():
    for loss in losses(torch.zeros(7), torch.zeros(7)):
        assert math.isclose(loss.item(), 2 * math.log(2), rel_tol=1e-6)


@given(logits, logits)
def test_swapping_the_logits_swaps_the_losses(a, b):
    assert losses(a, b) == losses(b, a)[::-1]


@given(logits, logits)
def test_losses_are_the_logarithms_of_algorithm_1(a, b):
    rho_q, rho_p = a.double().sigmoid(), b.double().sigmoid()
    loss_d = -rho_q.log().mean() - (-b.double()).sigmoid().log().mean()
    loss_g = -(-a.double()).sigmoid().log().mean() - rho_p.log().mean()
    ours = losses(a, b)
    assert torch.allclose(ours[0].double(), loss_d, rtol=1e-5, atol=1e-6)
    assert torch.allclose(ours[1].double(), loss_g, rtol=1e-5, atol=1e-6)


def test_losses_are_fp32_for_bf16_logits_and_gradients_never_vanish_for_the_loser():
    a = torch.full((3,), 40.0, dtype=torch.bfloat16, requires_grad=True)
    b = torch.full((3,), -40.0, dtype=torch.bfloat16, requires_grad=True)
    loss_d, loss_g = losses(a, b)
    assert loss_d.dtype == loss_g.dtype == torch.float32
    (gradient,) = torch.autograd.grad(loss_g, a)
    assert torch.allclose(gradient.float(), torch.full((3,), 1 / 3), rtol=1e-2)
