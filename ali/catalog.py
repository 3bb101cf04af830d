"""Which models there are: what each consists of, and the settings that it alone has.

A new model is an entry here, its networks in ali/models and a line in ali/models/registry.py. All
else follows from the entry: what is trained and how it is judged, which commands apply to it, and
the space of a sweep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

Model = Literal["ali", "gan"]


class Setting(NamedTuple):
    """A hyperparameter that only some models have: a field of Config whose default is None.

    Attributes:
        value: what None means: its authors' value where `ours` is false.
        search: the dimension of a sweep, as in docs/space.md; None: not searched.
        ours: whether its authors give no value, so that this one is our choice.
    """

    value: Any
    search: Mapping[str, Any] | None
    ours: bool = False


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a model consists of.

    Attributes:
        adam: whose Adam settings it has: d and g, or the one of the two that trains all of it.
        parts: of the paper's discriminator that it has: x, z and xz.
        leaky: which of the paper's networks it has, whose leaky slopes are searched.
        encodes: whether it has q(z | x): it encodes and reconstructs.
        generates: whether it has a prior over codes: it draws samples.
        classifies: whether it is trained with labels and classifies itself; otherwise SVMs do, on
            its features (§4.4).
        defaults: fields of Config whose value its authors, or we, choose otherwise.
        settings: its own hyperparameters, by field of Config.
    """

    adam: tuple[str, ...]
    parts: tuple[str, ...] = ()
    leaky: tuple[str, ...] = ()
    encodes: bool = False
    generates: bool = False
    classifies: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Setting] = field(default_factory=dict)


_ALI, _GAN = ("x", "z", "xz"), ("x", "xz")

KINDS: dict[Model, Kind] = {
    "ali": Kind(
        adam=("d", "g"),
        parts=_ALI,
        leaky=("encoder", "decoder", "discriminator"),
        encodes=True,
        generates=True,
    ),
    "gan": Kind(adam=("d", "g"), parts=_GAN, leaky=("decoder", "discriminator"), generates=True),
}
assert set(KINDS) == set(get_args(Model))

# Fields of Config that are a setting of some model.
SETTINGS = frozenset(name for kind in KINDS.values() for name in kind.settings)
