"""Points that a space did not draw, moved into it: the paper's, your own, another sweep's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from ali.config import Config
from sweeps.engine import dimensions
from sweeps.engine.dimensions import GROUPS, NETWORK
from sweeps.engine.space import InitialPoint, Space, suggest

ADAM = ("lr", "beta1", "beta2")
Changes = dict[str, tuple[Any, Any]]  # by field of Config: a point's own value, its trial's


def fitted(params: Mapping[str, Any], space: Space, base: Config) -> dict[str, Any]:
    """Those of `params` that `space` has, each at the nearest value in it."""
    return _fit(params, space, base).params


def within(point: InitialPoint, space: Space, base: Config) -> tuple[InitialPoint, Changes]:
    """The point in `space`, with the nearest values where its own lie outside, and these changes.

    It gets values for the further dimensions, too; those that have no nearest are left to the
    search. `base` has what all trials share.
    """
    point = replace(point, params=_with_switches(point.params, space))
    own = {name: value_of(point, name, base) for name in (*space.extra, *space.fixed)}
    params = point.params | {k: v for k, v in own.items() if k in space.extra and v is not None}
    found = _fit(params, space, base)
    kept = {k: v for k, v in params.items() if k not in found.asked} | found.params
    changes: Changes = {}
    for name in found.asked & params.keys() - NETWORK:
        if kept.get(name) != params[name]:
            changes[name] = params[name], kept.get(name, "a drawn one")
    for name, value in space.fixed.items():
        fixed = dimensions.label(name, value)
        if name in point.paper_values:
            changes[name] = "the table's", fixed
        elif own[name] not in (None, fixed) and name not in NETWORK:
            changes[name] = own[name], fixed
    return replace(point, params=kept), dict(sorted(changes.items()))


def _with_switches(params: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """The point with the switches that its other values imply, where it does not name them.

    Otherwise a search that draws them would not use these values, or use them unchecked.
    """
    found = dict(params)
    of_g = ("lr_g", "beta1_g", "one_minus_beta2_g")
    if any(name in params and not space.has_own(name) for name in of_g):
        found.setdefault("adam_apart", True)
    if any(params.get(name) for name in params if re.fullmatch(r"bn_x\d+", name)):
        found.setdefault("bn", True)
    return found


def params_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The search's parameters of what `suggest` has drawn, or the space had fixed.

    What is None, as the paper's table has it, is left out.
    """
    params = {name: value for name, value in config.items() if value is not None}
    for beta2 in params.keys() & {"beta2_d", "beta2_g"}:
        params[f"one_minus_{beta2}"] = round(1 - params[beta2], 12)
    adam = [(params.get(f"{name}_d"), params.get(f"{name}_g")) for name in ADAM]
    if all(None not in pair for pair in adam):
        params["adam_apart"] = any(d != g for d, g in adam)
    if layers := params.pop("bn_x", None):
        params["bn"] = any(layers)
        params |= {f"bn_x{i}": on for i, on in enumerate(layers, start=1)}
    return params


def value_of(point: InitialPoint, name: str, base: Config) -> Any:
    """The point's value of a field of Config, bn_x as "11101"; None if it names none."""
    params, of_d = point.params, f"{name[:-2]}_d"
    if name in point.paper_values:
        return None
    if name in params:
        return params[name]
    if f"one_minus_{name}" in params:
        return 1 - params[f"one_minus_{name}"]
    if name.endswith("_g") and any(of_d in its for its in GROUPS.values()):  # Adam's are shared
        return value_of(point, of_d, base)
    if name == "bn_x" and "bn" in params:
        layers = sorted(key for key in params if re.fullmatch(r"bn_x\d+", key))
        return "".join("01"[params["bn"] and params[key]] for key in layers) or None
    return getattr(base, name) if name in NETWORK else None


def _fit(params: Mapping[str, Any], space: Space, base: Config) -> _Fitted:
    stand_in = _Fitted(params)
    suggest(stand_in, space, base)  # type: ignore[arg-type]
    return stand_in


class _Fitted:
    """Takes the place of a trial: each value that is asked for is the given one, or the nearest."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given, self.params, self.user_attrs = given, dict[str, Any](), dict[str, Any]()
        self.asked: set[str] = set()

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return self._nearest(name, FloatDistribution(low, high), low)

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        return self._nearest(name, IntDistribution(low, high), low)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._nearest(name, CategoricalDistribution(choices), choices[0])

    def _nearest(self, name: str, distribution: BaseDistribution, otherwise: Any) -> Any:
        self.asked.add(name)
        if (own := self.given.get(name)) is None:
            return otherwise
        if (value := dimensions.nearest(distribution, own)) is not None:
            self.params[name] = value
        return otherwise if value is None else value
