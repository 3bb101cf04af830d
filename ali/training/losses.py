"""The two losses of Algorithm 1 (§2, eq. 1 and the non-saturating form), from logits."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softplus


def losses(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(L_d, L_g) in nats, fp32 scalars, from a = logit D(x, ẑ) and b = logit D(x̃, z), each (M,).

    With ρ = σ(logit): −log ρ = softplus(−logit) and −log(1 − ρ) = softplus(logit).
    """
    a, b = a.float(), b.float()
    loss_d = softplus(-a).mean() + softplus(b).mean()  # −1/M Σ log ρ_q − 1/M Σ log(1 − ρ_p)
    loss_g = softplus(a).mean() + softplus(-b).mean()  # −1/M Σ log(1 − ρ_q) − 1/M Σ log ρ_p
    return loss_d, loss_g
