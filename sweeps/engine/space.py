"""The search space over ALI's hyperparameters (Appendix A), and the paper's own point in it.

Which hyperparameters exist depends on the table of the data set: the networks of Fig. 7 have
neither D(x) nor leaky ReLUs, and the discriminator of Table 2 is maxout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import optuna

from ali.config import Config
from ali.models.tables import LEAKY, Rows, paper_table

Range = tuple[float, float]


@dataclass(frozen=True)
class Space:
    """Ranges of the search, inclusive. What it yields are fields of `ali.config.Config`.

    Two choices are conditional. Encoder and decoder either share the discriminator's Adam settings
    or have their own (`adam_apart`); D(x) either has no batch norm or has it per layer (`bn`).
    """

    lr: Range = (2e-5, 2e-3)
    """Adam's α, log scale. Tables 2 to 5: 1e-4."""
    beta1: Range = (0.0, 0.9)
    """Adam's β₁. Tables 2 to 5: 0.5."""
    one_minus_beta2: Range = (1e-4, 1e-1)
    """1 − β₂, as the tables print it; log scale. Tables 2 to 5: 1e-3."""
    dropout: Range = (0.0, 0.6)
    """Dropout of D(x), D(z) and D(x, z), each its own, alike in all its layers. Table 3: 0.2."""
    slope: Range = (0.0, 0.3)
    """Leaky slopes of encoder, decoder and discriminator, each its own. Table 3: 0.01."""
    bn_with_z: bool = False
    """Also try batch norm in D(z) and D(x, z), which §4 reports as unstable."""
    weight_std: Range | None = None
    """Standard deviation of the initial weights, log scale; None: the table's. Tables 2 to 5:
    0.01."""
    batch_sizes: tuple[int, ...] = ()
    """Images per step; empty: the sweep's --batch-size."""


@dataclass(frozen=True)
class InitialPoint:
    """A point to evaluate before the search draws any.

    Attributes:
        params: in the search's own parameters; names outside the space in use are ignored.
        paper_values: fields of Config that its trial takes from the paper's table unchanged,
            because they lie outside the space; `params` then holds the nearest point, for the
            search to learn from.
    """

    params: dict[str, Any]
    paper_values: tuple[str, ...] = ()


PAPER_VALUES = "as_printed"  # user attribute of a trial: InitialPoint.paper_values


def paper_defaults(base: Config) -> InitialPoint:
    """The table of the data set, exactly as printed."""
    table = paper_table(base)
    params: dict[str, Any] = {
        "adam_apart": False,
        "lr_d": 1e-4,
        "beta1_d": 0.5,
        "one_minus_beta2_d": 1e-3,
        "bn": any(row.bn for row in table.d_x),
        **{f"bn_x{i}": row.bn for i, row in enumerate(table.d_x, start=1)},
        "bn_z": False,
        "bn_xz": False,
        "weight_std": table.weight_std,
        "batch_size": base.batch_size,
    }
    paper_values = []
    for part, rows in _discriminator(base).items():
        dropout = [row.dropout for row in rows]
        params[f"dropout_{part}"] = mean(dropout)
        if min(dropout) < max(dropout):  # Table 2: 0.2 on the input, then 0.5
            paper_values.append(f"dropout_{part}")
    params |= {f"slope_{who}": table.slope for who in _leaky(base)}
    return InitialPoint(params, tuple(paper_values))


def short_budget(base: Config) -> InitialPoint:
    """The best point found by hand for some 3,000 steps of 32 images (Table 3 at an eighth and a
    quarter of its width, embedded data): four times the paper's learning rate and hardly any
    dropout in D. At twice that rate, or with more dropout, the encoder's first layers degenerate.
    """
    found = {"lr_d": 4e-4, "beta1_d": 0.1, "one_minus_beta2_d": 3e-4}
    found |= {"dropout_x": 0.1, "dropout_z": 0.0, "dropout_xz": 0.0, "bn": True}
    found |= {f"bn_x{i}": i != 4 for i in range(1, 6)}
    slopes = {f"slope_{who}": 0.15 for who in _leaky(base)}
    return InitialPoint(paper_defaults(base).params | found | slopes)


def suggest(trial: optuna.Trial, space: Space, base: Config) -> dict[str, Any]:
    """Draws one point of `space`: values for those fields of `base` that its networks have."""

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
    parts = _discriminator(base)
    for name in (f"dropout_{part}" for part in parts):
        point[name] = trial.suggest_float(name, *space.dropout)
    for name in (f"slope_{who}" for who in _leaky(base)):
        point[name] = trial.suggest_float(name, *space.slope)
    if "x" in parts:
        layers = range(1, len(parts["x"]) + 1)
        point["bn_x"] = [yes(f"bn_x{i}") for i in layers] if yes("bn") else [False for _ in layers]
    for name in (f"bn_{part}" for part in parts if part != "x"):
        point[name] = space.bn_with_z and yes(name)
    if space.weight_std:
        point["weight_std"] = trial.suggest_float("weight_std", *space.weight_std, log=True)
    if space.batch_sizes:
        point["batch_size"] = trial.suggest_categorical("batch_size", space.batch_sizes)
    return point | dict.fromkeys(trial.user_attrs.get(PAPER_VALUES, ()))


def with_optional(
    space: Space, base: Config, bn_with_z: bool, weight_std: bool, batch_size: bool
) -> Space:
    """`space` with the dimensions that are off by default, as the options of a sweep ask.

    Initial weights: from the table's to ten times that. Batches: half, once and twice the sweep's.
    """
    std, batch = paper_table(base).weight_std, base.batch_size
    return replace(
        space,
        bn_with_z=space.bn_with_z or bn_with_z,
        weight_std=space.weight_std or ((std, 10 * std) if weight_std else None),
        batch_sizes=space.batch_sizes
        or ((max(2, batch // 2), batch, 2 * batch) if batch_size else ()),
    )


def _discriminator(base: Config) -> dict[str, Rows]:
    """The parts of the discriminator that there are, by the ending of their fields in Config."""
    table = paper_table(base)
    z = table.d_z if base.model == "ali" else ()
    parts = {"x": table.d_x, "z": z, "xz": table.d_xz}
    return {name: rows for name, rows in parts.items() if rows}


def _leaky(base: Config) -> list[str]:
    """The networks with leaky ReLUs; a slope of 0 in the table means ReLU, and is not searched."""
    table = paper_table(base)
    rows = {
        "encoder": table.encoder if base.model == "ali" else (),
        "decoder": table.decoder,
        "discriminator": table.d_x + table.d_z + table.d_xz,
    }
    return [
        who
        for who, its in rows.items()
        if table.slope > 0 and any(row.nonlinearity == LEAKY for row in its)
    ]
