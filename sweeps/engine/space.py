"""The search space over ALI's hyperparameters (Appendix A), and the paper's own point in it.

Which hyperparameters exist depends on the table of the data set: the networks of Fig. 7 have no
D(x), and their discriminator, like that of Table 2, is maxout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import optuna

from ali.catalog import KINDS, SETTINGS
from ali.config import Config
from ali.errors import UserError
from ali.models.tables import LEAKY, Rows, apply_config, paper_table
from ali.settings import missing_file, read_settings
from sweeps.engine import dimensions
from sweeps.engine.dimensions import GROUPS, SWITCHES, Dimension, field_value

Range = tuple[float, float]


# What a field's own entry puts in place of a range that the space may have of it.
_OPTIONAL: dict[str, Any] = {
    "weight_std": {"weight_std": None},
    "batch_size": {"batch_sizes": ()},
}


@dataclass(frozen=True)
class Space:
    """Ranges of the search, inclusive. It yields fields of `ali.config.Config`.

    Two choices are conditional. Encoder and decoder either share the discriminator's Adam settings
    or have their own (`adam_apart`); D(x) either has no batch norm or has it per layer (`bn`).

    A range is (low, high), or one of Optuna's distributions: `FloatDistribution(1e-4, 1e-3)` has a
    linear scale. `read_space` reads the same from a file. Raises UserError for what Config refuses.
    """

    lr: Dimension = (2e-5, 2e-3)
    """Adam's α, log scale. Tables 2 to 5: 1e-4."""
    beta1: Dimension = (0.0, 0.9)
    """Adam's β₁. Tables 2 to 5: 0.5."""
    one_minus_beta2: Dimension = (1e-4, 1e-1)
    """1 − β₂, as the tables print it; log scale. Tables 2 to 5: 1e-3."""
    dropout: Dimension = (0.0, 0.6)
    """Dropout of D(x), D(z) and D(x, z), each its own, alike in all its layers. Table 3: 0.2."""
    slope: Dimension = (0.0, 0.3)
    """Leaky slopes of encoder, decoder and discriminator, each its own. Table 3: 0.01."""
    bn_with_z: bool = False
    """Also try batch norm in D(z) and D(x, z), which §4 reports as unstable."""
    weight_std: Range | None = None
    """Standard deviation of the initial weights, log scale; None: the table's. Tables 2 to 5:
    0.01."""
    batch_sizes: tuple[int, ...] = ()
    """Images per step; empty: the sweep's --batch-size."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Values that all trials have, by field of Config (`dropout_x`), range of the space (`dropout`:
    all three) or choice of its own (`adam_apart`, `bn`)."""
    extra: Mapping[str, Dimension] = field(default_factory=dict)
    """Further dimensions, by field of Config: `width`, or one with a range of its own, `lr_g`."""

    def __post_init__(self) -> None:
        for name in GROUPS:
            dimensions.dimension(name, getattr(self, name))
        fixed = dict(dimensions.expanded(self.fixed))
        extra: dict[str, Dimension] = {}
        for name, given in self.extra.items():
            dimensions.check_name(name)
            if name in GROUPS:
                raise dimensions.refuse(name, f"is no further dimension: Space({name}=…) sets it")
            if name in fixed:
                raise dimensions.refuse(name, "is both fixed and searched: leave one out")
            extra[name] = dimensions.dimension(name, given)
        object.__setattr__(self, "fixed", fixed)
        object.__setattr__(self, "extra", extra)

    def has_own(self, name: str) -> bool:
        """Whether a field of Config is fixed, or has a range of its own."""
        return name in self.fixed or name in self.extra

    def apply_fixed(self, base: Config) -> Config:
        """What all trials have in common: `base` with the fixed values.

        Raises UserError for a dimension that the networks of the data set do not have, or values
        that they do not take.
        """
        fixed = {k: v for k, v in self.fixed.items() if k not in SWITCHES}
        try:
            base = Config.from_dict({**base.to_dict(), **fixed})
        except UserError as error:
            raise dimensions.refuse_fixed(error, fixed) from None
        parts, leaky = _discriminator(base), _leaky(base)
        there = {f"{what}_{part}" for part in parts for what in ("dropout", "bn")}
        there |= {f"slope_{who}" for who in leaky} | KINDS[base.model].settings.keys()
        for name, given in self.extra.items():
            of_some = name.startswith(("dropout_", "bn_", "slope_")) or name in SETTINGS
            if of_some and name not in there:
                raise dimensions.refuse(name, f"has no effect: the networks of {base.data} lack it")
            for value in dimensions.ends(given):
                dimensions.check_value(name, value, base.to_dict())
                _check_table(name, base.replace(**{name: _frozen(field_value(name, value))}))
        _check_table("bn_x", base)
        return base

    def largest(self, base: Config) -> Config:
        """`base` with the most that a trial may take of data and memory: batch, width, levels."""
        names = ("batch_size", "width", "levels")
        ends = {name: [*dimensions.ends(self.extra[name])] for name in names if name in self.extra}
        if self.batch_sizes:
            ends.setdefault("batch_size", []).extend(self.batch_sizes)
        return base.replace(**{name: max(of_it) for name, of_it in ends.items()})

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON types, as in a file; `from_dict` is the inverse."""
        plain: dict[str, Any] = {
            name: dimensions.to_plain(name, getattr(self, name)) for name in GROUPS
        }
        plain["bn_with_z"] = self.bn_with_z
        if self.weight_std:
            low, high = self.weight_std
            plain["weight_std"] = {"low": low, "high": high, "log": True}
        if self.batch_sizes:
            plain["batch_size"] = {"choices": list(self.batch_sizes)}
        plain |= {name: dimensions.to_plain(name, given) for name, given in self.extra.items()}
        return plain | {k: list(v) if isinstance(v, tuple) else v for k, v in self.fixed.items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], other: Space | None = None) -> Space:
        """`other`, by default the paper's ranges, with these dimensions in place of its own.

        A dimension is a value, {low, high, log} or {choices}, as in a file. Raises UserError.
        """
        other = other or cls()
        ranges: dict[str, Any] = {}
        fixed, extra = dict(other.fixed), dict(other.extra)
        for name in sorted(plain, key=lambda name: name not in GROUPS):  # then single fields
            given = plain[name]
            if name == "bn_with_z":
                if not isinstance(given, bool):
                    raise dimensions.refuse(name, f"must be true or false, not {given!r}")
                ranges[name] = given
                continue
            dimensions.check_name(name)
            ranges |= _OPTIONAL.get(name, {})
            for one in (name, *GROUPS.get(name, ())):
                fixed.pop(one, None)
                extra.pop(one, None)
            if not isinstance(given, Mapping):
                fixed |= dimensions.expanded({name: given})
            elif name in GROUPS:
                ranges[name] = dimensions.dimension(name, given)
            else:
                extra[name] = dimensions.dimension(name, given)
        return replace(other, **ranges, fixed=fixed, extra=extra)


def read_space(path: Path | str, other: Space | None = None) -> Space:
    """`other` with its dimensions replaced by those of a file (docs/space.md).

    `other`: by default the paper's ranges.

    Raises UserError, naming the file, the line and the dimension.
    """
    path = Path(path)
    try:
        settings = read_settings(path)
    except FileNotFoundError:
        raise missing_file(path) from None
    if not isinstance(settings.values, dict):
        settings.refuse("", "not a table of dimensions, such as lr = {low = 1e-4, high = 1e-3}")
    try:
        return Space.from_dict(settings.values, other)
    except UserError as error:
        name, _, problem = str(error).removeprefix("space: ").partition(" ")
        settings.refuse(name, problem)


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


DRAWS = 32  # random points: a field that is the same in all of them is not searched
PAPER_VALUES = "as_printed"  # user attribute of a trial: InitialPoint.paper_values


def paper_defaults(base: Config) -> InitialPoint:
    """The table of the data set, exactly as printed; another model's as its authors have it."""
    table, kind, default = paper_table(base), KINDS[base.model], Config.of_model(base.model)
    params: dict[str, Any] = {
        "adam_apart": False,
        **_adam(default, kind.adam[0]),
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
    params |= {name: own.value for name, own in kind.settings.items()}
    return InitialPoint(params, tuple(paper_values))


def _adam(config: Config, who: str) -> dict[str, float]:
    """Adam's settings as the search's parameters."""
    lr, beta1, beta2 = (getattr(config, f"{name}_{who}") for name in ("lr", "beta1", "beta2"))
    one_minus_beta2 = round(1 - beta2, 12)  # 0.001, and not 0.0010000000000000009
    return {f"lr_{who}": lr, f"beta1_{who}": beta1, f"one_minus_beta2_{who}": one_minus_beta2}


def short_budget(base: Config) -> InitialPoint:
    """The best point found by hand for some minutes of training at a quarter of Table 3's width.

    On house numbers (two levels, a bounded σ, 5,000 steps of 32 images) that is ten times the
    paper's learning rate, and batch norm in D(x)'s last two layers alone. On all other images it is
    what was found on SVHN crops (one level, 13,000 steps): two fifths of that rate, hardly any
    dropout, and batch norm in all but one layer. On house numbers that has a lower `val_error`,
    too, but D wins and the samples repeat a few pictures (docs/results.md).
    """
    normed: tuple[int, ...]
    if base.data == "house-numbers":
        rate, dropout, normed, slope = 1e-3, (0.3, 0.1, 0.1), (4, 5), 0.2
    else:
        rate, dropout, normed, slope = 4e-4, (0.1, 0.0, 0.0), (1, 2, 3, 5), 0.15
    found = {"lr_d": rate, "beta1_d": 0.1, "one_minus_beta2_d": 3e-4, "bn": True}
    found |= dict(zip(("dropout_x", "dropout_z", "dropout_xz"), dropout, strict=True))
    found |= {f"bn_x{i}": i in normed for i in range(1, 6)}
    found |= {"lr_g": 1e-3}  # for VAEs and the like; else adam_apart is false, and this unused
    leaky = {who: slope if who == "discriminator" else 0.15 for who in _leaky(base)}
    slopes = {f"slope_{who}": its for who, its in leaky.items()}
    return InitialPoint(paper_defaults(base).params | found | slopes)


def suggest(trial: optuna.trial.BaseTrial, space: Space, base: Config) -> dict[str, Any]:
    """Draws one point of `space`: values for those fields of `base` that its networks have.

    Fixed values are in `base` (`Space.apply_fixed`), and not drawn.
    """

    def drawn(name: str, given: Dimension | None = None, log: bool = False) -> Any:
        if name in space.fixed:
            return base.to_dict()[name]
        own = space.extra.get(name, given)
        assert own is not None
        return field_value(name, dimensions.draw(trial, name, own, log))

    def adam(who: str) -> dict[str, float]:
        beta2, apart = f"beta2_{who}", f"one_minus_beta2_{who}"
        return {
            f"lr_{who}": drawn(f"lr_{who}", space.lr, log=True),
            f"beta1_{who}": drawn(f"beta1_{who}", space.beta1),
            beta2: drawn(beta2)
            if space.has_own(beta2)
            else 1 - dimensions.draw(trial, apart, space.one_minus_beta2, log=True),
        }

    def yes(name: str) -> bool:
        if name in space.fixed:
            return space.fixed[name]
        return trial.suggest_categorical(name, [False, True])

    kind = KINDS[base.model]
    first, *second = kind.adam
    point: dict[str, Any] = adam(first)
    of_g = {name.replace("_d", "_g"): name for name in point if second}
    shared = [name for name in of_g if not space.has_own(name)]
    if shared and yes("adam_apart"):
        point |= adam("g")
    else:
        point |= {g: point[d] if g in shared else drawn(g) for g, d in of_g.items()}
    parts = _discriminator(base)
    for name in (f"dropout_{part}" for part in parts):
        point[name] = drawn(name, space.dropout)
    for name in (f"slope_{who}" for who in _leaky(base)):
        point[name] = drawn(name, space.slope)
    if "x" in parts and space.has_own("bn_x"):
        point["bn_x"] = drawn("bn_x")
    elif "x" in parts:
        layers = range(1, len(parts["x"]) + 1)
        point["bn_x"] = [yes(f"bn_x{i}") for i in layers] if yes("bn") else [False for _ in layers]
    for name in (f"bn_{part}" for part in parts if part != "x"):
        point[name] = drawn(name) if space.has_own(name) else space.bn_with_z and yes(name)
    for name, own in kind.settings.items():
        if own.search is not None:
            point[name] = drawn(name, dimensions.dimension(name, own.search))
    if space.weight_std and not space.has_own("weight_std"):
        point["weight_std"] = drawn("weight_std", space.weight_std, log=True)
    if space.batch_sizes and not space.has_own("batch_size"):
        point["batch_size"] = trial.suggest_categorical("batch_size", space.batch_sizes)
    point |= {name: drawn(name) for name in space.extra if name not in point}
    as_printed = trial.user_attrs.get(PAPER_VALUES, ())
    return point | dict.fromkeys(name for name in as_printed if name not in space.fixed)


def searched_fields(space: Space, base: Config) -> tuple[str, ...]:
    """The fields of a configuration in which points of `space` differ."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    points = [suggest(study.ask(), space, base) for _ in range(DRAWS)]
    names = dict.fromkeys(name for point in points for name in point)
    return tuple(n for n in names if any(p.get(n) != points[0].get(n) for p in points))


def with_optional(
    space: Space, base: Config, bn_with_z: bool, weight_std: bool, batch_size: bool
) -> Space:
    """`space` with the dimensions that are off by default, as the options of a sweep ask.

    Initial weights: from the table's to ten times that. Batches: half, once and twice the sweep's.
    Raises UserError if the space says otherwise.
    """
    if weight_std and not KINDS[base.model].parts:
        raise UserError(f"--vary-weight-std: a {base.model} has no networks of the paper's tables")
    for asked, name in ((weight_std, "weight_std"), (batch_size, "batch_size")):
        if asked and space.has_own(name):
            option = f"--vary-{name.replace('_', '-')}"
            raise UserError(f"the space has {name} already: leave {option} out, or {name}")
    std, batch = paper_table(base).weight_std, base.batch_size
    return replace(
        space,
        bn_with_z=space.bn_with_z or bn_with_z,
        weight_std=space.weight_std or ((std, 10 * std) if weight_std else None),
        batch_sizes=space.batch_sizes
        or ((max(2, batch // 2), batch, 2 * batch) if batch_size else ()),
    )


def _discriminator(base: Config) -> dict[str, Rows]:
    """The discriminator's existing parts, by the suffix of their fields in Config."""
    table, there = paper_table(base), KINDS[base.model].parts
    parts = {"x": table.d_x, "z": table.d_z, "xz": table.d_xz}
    return {name: rows for name, rows in parts.items() if rows and name in there}


def _leaky(base: Config) -> list[str]:
    """The networks with leaky ReLUs; a slope of 0 in the table means ReLU, and is not searched."""
    table = paper_table(base)
    rows = {
        "encoder": table.encoder,
        "decoder": table.decoder,
        "discriminator": table.d_x + table.d_z + table.d_xz,
    }
    return [
        who
        for who, its in rows.items()
        if who in KINDS[base.model].leaky
        and table.slope > 0
        and any(row.nonlinearity == LEAKY for row in its)
    ]


def _check_table(name: str, config: Config) -> None:
    try:
        apply_config(config)
    except UserError as error:
        raise dimensions.refuse(name, f"does not fit: {error}") from None


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
