"""A dimension of the search: a range or choices of one field of Config; checks and conversions.

In a file, and in `Space.fixed` and `Space.extra`, a dimension has one of three forms: a value,
{low, high, log} and {choices}.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, get_type_hints

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from ali.catalog import KINDS
from ali.config import Common, Config
from ali.errors import UserError
from ali.settings import is_float

Dimension = tuple[float, float] | BaseDistribution

# Dimensions of the space that stand for several fields of Config, and whether their scale is log.
GROUPS: dict[str, tuple[str, ...]] = {
    "lr": ("lr_d", "lr_g"),
    "beta1": ("beta1_d", "beta1_g"),
    "one_minus_beta2": ("beta2_d", "beta2_g"),
    "dropout": ("dropout_x", "dropout_z", "dropout_xz"),
    "slope": ("slope_encoder", "slope_decoder", "slope_discriminator"),
}
LOG = {"lr", "one_minus_beta2"}
# The search's own choices: Adam's settings apart for encoder and decoder; batch norm in D(x).
SWITCHES = ("adam_apart", "bn")
# What trials may differ in. All else decides what is measured: all trials of a sweep share it.
NETWORK = {"levels", "sigma", "width", "batch_size", "precision"}  # searched only if asked
SHARED = {field.name for field in fields(Common)} - NETWORK
FIELDS = [f.name for f in fields(Config) if f.name not in SHARED | {"seed"}]
NAMES = (*GROUPS, *SWITCHES, *FIELDS)


def refuse(name: str, problem: str) -> UserError:
    return UserError(f"space: {name} {problem}")


def given_as(field: str, fixed: Mapping[str, Any]) -> str:
    """What a fixed field is given as: its group, if all of it has one value, or the field."""
    for group, members in GROUPS.items():
        if field in members and len({fixed.get(one) for one in members}) == 1:
            return group
    return field


def refuse_fixed(error: UserError, fixed: Mapping[str, Any]) -> UserError:
    """Config's error about fixed values, "--slope-encoder must be …", in the space's names."""
    option, _, problem = str(error).partition(" ")
    field = option.removeprefix("--").replace("-", "_")
    return refuse(given_as(field, fixed), problem) if field in fixed else error


def check_name(name: str) -> None:
    """Raises UserError if the trials of a sweep may not differ in it."""
    if name in NAMES:
        return
    if name == "seed" or name in SHARED:
        option = "--" + name.replace("_", "-")
        raise refuse(name, f"cannot be searched: trials share it; give {option}")
    alike = difflib.get_close_matches(name, NAMES, 1)
    hint = f"do you mean {alike[0]}?" if alike else f"known are {', '.join(NAMES)}"
    raise refuse(name, f"is unknown: {hint}")


def field_values(name: str, value: Any) -> dict[str, Any]:
    """The fields of Config that a value of a dimension sets, itself or all of its group."""
    if name in SWITCHES:
        return {}
    if name == "one_minus_beta2":
        return dict.fromkeys(GROUPS[name], 1 - value)
    return {field: field_value(field, value) for field in GROUPS.get(name, (name,))}


def field_value(name: str, value: Any) -> Any:
    """A drawn or given value as Config has it: bn_x may be given as "11101"."""
    if name == "bn_x" and isinstance(value, str) and re.fullmatch("[01]+", value):
        return [digit == "1" for digit in value]
    return value


def label(name: str, value: Any) -> Any:
    """The inverse of `field_value`: a value as a search may store it."""
    return "".join("01"[on] for on in value) if name == "bn_x" and _is_bools(value) else value


def check_value(name: str, value: Any, base: Mapping[str, Any] | None = None) -> None:
    """Raises UserError if Config rejects the value, given the fields of `base`."""
    if name in SWITCHES and not isinstance(value, bool):
        raise refuse(name, f"must be true or false, not {value!r}")
    if name in GROUPS and not _is_number(value):
        raise refuse(name, f"must be a number, or a range {{low = …, high = …}}, not {value!r}")
    for field, given in field_values(name, value).items():
        try:
            Config.from_dict({**(base or _of_some_model(field)), field: given})
        except UserError as error:
            if name == "one_minus_beta2":
                raise refuse(name, f"must be in (0, 1], not {value!r}") from None
            option = field.replace("_", "-")
            own = rf"^(--{option}|not a valid configuration: {field}) "
            raise refuse(name, re.sub(own, "", str(error))) from None


def _of_some_model(field: str) -> dict[str, Any]:
    """Arguments for a Config whose model has a field: ALI, unless it is another model's own."""
    owners = [model for model, kind in KINDS.items() if field in kind.settings]
    return {"model": owners[0]} if owners else {}


def dimension(name: str, given: Any) -> BaseDistribution:
    """Converts a user's dimension to an Optuna distribution.

    `given`: a distribution, (low, high), or a table with low, high and log, or with choices. Raises
    UserError if it is none of these, or Config rejects its values.
    """
    if name in SWITCHES:
        raise refuse(name, "is searched anyway: fix it as true or false")
    if isinstance(given, BaseDistribution):
        if getattr(given, "step", None) not in (None, 1):
            raise refuse(name, f"has a step of {given.step}: give choices in its place")  # type: ignore[attr-defined]
        found = given
    elif isinstance(given, Mapping) and set(given) == {"choices"}:
        found = _choices(name, given["choices"])
    elif isinstance(given, Mapping) and {"low", "high"} <= set(given) <= {"low", "high", "log"}:
        found = _range(name, given["low"], given["high"], given.get("log", name in LOG))
    elif isinstance(given, (tuple, list)) and len(given) == 2 and all(map(_is_number, given)):
        found = _range(name, given[0], given[1], name in LOG)
    else:
        form = "{low = …, high = …, log = …} or {choices = […]}"
        raise refuse(name, f"must be a value, {form}, not {given!r}")
    for value in ends(found):
        check_value(name, value)
    return found


def _range(name: str, low: Any, high: Any, log: Any) -> BaseDistribution:
    for key, value in {"low": low, "high": high}.items():
        if not _is_number(value):
            raise refuse(name, f"has {key} {value!r}, which is not a finite number")
    if not isinstance(log, bool):
        raise refuse(name, f"has log {log!r}: it must be true or false")
    if not low < high:
        raise refuse(name, f"has low {low:g} and high {high:g}: low must be below high")
    if log and low <= 0:
        raise refuse(name, f"has low {low:g}: a log scale needs a low above 0")
    if get_type_hints(Config).get(name) is int:
        if low != int(low) or high != int(high):
            raise refuse(name, f"has low {low:g} and high {high:g}: they must be whole numbers")
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _choices(name: str, given: Any) -> CategoricalDistribution:
    if not isinstance(given, (list, tuple)) or not given:
        raise refuse(name, f"has choices {given!r}: they must be a list of values")
    if name == "bn_x":  # Optuna stores no lists
        given = [label(name, one) for one in given]
    if len(set(map(repr, given))) < len(given):
        raise refuse(name, f"has choices {given!r}: each must be there once")
    for value in given:
        check_value(name, value)
    return CategoricalDistribution(given)


def ends(given: Dimension) -> Sequence[Any]:
    """The values that decide whether all of a dimension are allowed."""
    if isinstance(given, CategoricalDistribution):
        return given.choices
    if isinstance(given, (FloatDistribution, IntDistribution)):
        return given.low, given.high
    assert isinstance(given, (tuple, list))
    return given


def to_plain(name: str, given: Dimension) -> dict[str, Any]:
    """A dimension as a file has it, plain JSON types."""
    found = given if isinstance(given, BaseDistribution) else dimension(name, given)
    if isinstance(found, CategoricalDistribution):
        return {"choices": list(found.choices)}
    assert isinstance(found, (FloatDistribution, IntDistribution))
    return {"low": found.low, "high": found.high, "log": found.log}


def nearest(given: BaseDistribution, value: Any) -> Any:
    """The value of a dimension that is nearest to any other; None if there is no nearest."""
    if isinstance(given, CategoricalDistribution):
        if value in given.choices:
            return value
        numbers = [choice for choice in given.choices if _is_number(choice)]
        near = _is_number(value) and numbers
        return min(numbers, key=lambda choice: abs(choice - value)) if near else None
    low, high = ends(given)
    inside = min(max(value, low), high)
    return round(inside) if isinstance(given, IntDistribution) else inside


def draw(trial: Any, name: str, given: Dimension, log: bool = False) -> Any:
    """Asks an Optuna trial for a value; `log`: the scale of a pair."""
    if isinstance(given, CategoricalDistribution):
        return trial.suggest_categorical(name, given.choices)
    if isinstance(given, IntDistribution):
        return trial.suggest_int(name, given.low, given.high, step=given.step, log=given.log)
    if isinstance(given, FloatDistribution):
        return trial.suggest_float(name, given.low, given.high, step=given.step, log=given.log)
    return trial.suggest_float(name, *ends(given), log=log)


def expanded(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Fixed values by field of Config or switch, those of groups by each of their fields."""
    for name, value in values.items():
        check_name(name)
        check_value(name, value)
        yield from (field_values(name, value) or {name: value}).items()


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and is_float(value) and math.isfinite(value)


def _is_bools(value: Any) -> bool:
    return isinstance(value, Iterable) and all(isinstance(one, bool) for one in value)
