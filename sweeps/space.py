"""The search space over ALI's hyperparameters (Appendix A), and the paper's own point in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import optuna

Range = tuple[float, float]


@dataclass(frozen=True)
class Space:
    """Ranges of the search, inclusive. What it yields are fields of `ali.config.Config`.

    Two choices are conditional. Encoder and decoder either share the discriminator's Adam settings
    or have their own (`adam_apart`); D(x) either has no batch norm or has it per layer (`bn`).
    """

    lr: Range = (2e-5, 2e-3)
    """Adam's α, log scale. Table 3: 1e-4."""
    beta1: Range = (0.0, 0.9)
    """Adam's β₁. Table 3: 0.5."""
    one_minus_beta2: Range = (1e-4, 1e-1)
    """1 − β₂, as the tables print it; log scale. Table 3: 1e-3."""
    dropout: Range = (0.0, 0.6)
    """Dropout of D(x), D(z) and D(x, z), each its own. Table 3: 0.2."""
    slope: Range = (0.0, 0.3)
    """Leaky slopes of encoder, decoder and discriminator, each its own. Table 3: 0.01."""
    bn_with_z: bool = False
    """Also try batch norm in D(z) and D(x, z), which §4 reports as unstable."""


PAPER: dict[str, Any] = {
    "adam_apart": False,
    "lr_d": 1e-4,
    "beta1_d": 0.5,
    "one_minus_beta2_d": 1e-3,
    "dropout_x": 0.2,
    "dropout_z": 0.2,
    "dropout_xz": 0.2,
    "slope_encoder": 0.01,
    "slope_decoder": 0.01,
    "slope_discriminator": 0.01,
    "bn": True,
    "bn_x1": False,
    "bn_x2": True,
    "bn_x3": True,
    "bn_x4": True,
    "bn_x5": True,
    "bn_z": False,
    "bn_xz": False,
}
"""Table 3 in the search's own parameters; names outside the space in use are ignored."""

BRIEF: dict[str, Any] = PAPER | {
    "lr_d": 5e-5,
    "dropout_x": 0.4,
    "dropout_xz": 0.4,
    "slope_encoder": 0.1,
    "slope_decoder": 0.1,
    "slope_discriminator": 0.1,
}
"""Found by hand on the embedded data: Table 3 with a weaker discriminator, for some 2,000 steps."""


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """Draws one point of `space`: values for fields of `Config`."""

    def adam(who: str) -> dict[str, float]:
        return {
            f"lr_{who}": trial.suggest_float(f"lr_{who}", *space.lr, log=True),
            f"beta1_{who}": trial.suggest_float(f"beta1_{who}", *space.beta1),
            f"beta2_{who}": 1
            - trial.suggest_float(f"one_minus_beta2_{who}", *space.one_minus_beta2, log=True),
        }

    def yes(name: str) -> bool:
        return trial.suggest_categorical(name, [False, True])

    point: dict[str, Any] = adam("d")
    if yes("adam_apart"):
        point |= adam("g")
    else:
        point |= {f"{name}_g": point[f"{name}_d"] for name in ("lr", "beta1", "beta2")}
    for name in ("dropout_x", "dropout_z", "dropout_xz"):
        point[name] = trial.suggest_float(name, *space.dropout)
    for name in ("slope_encoder", "slope_decoder", "slope_discriminator"):
        point[name] = trial.suggest_float(name, *space.slope)
    layers = range(1, 6)  # Table 3: five convolutions in D(x)
    point["bn_x"] = [yes(f"bn_x{i}") for i in layers] if yes("bn") else [False for _ in layers]
    for name in ("bn_z", "bn_xz"):
        point[name] = space.bn_with_z and yes(name)
    return point
