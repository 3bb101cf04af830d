"""The models: what each consists of, and the settings that only it has.

A new model is an entry here, its networks in ali/models and a line in ali/models/registry.py. All
else follows from the entry: what is trained and how it is judged, which commands apply to it, and
the space of a sweep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

Model = Literal[
    "ali",
    "gan",
    "ali-labels",
    "gan-labels",
    "convnet",
    "vae-m1",
    "vae-m2",
    "vae-m1m2",
    "sdgm",
    "adgm",
    "swwae",
]


class Setting(NamedTuple):
    """A hyperparameter that only some models have: a field of Config whose default is None.

    Attributes:
        value: used for None: its authors' value unless `ours`.
        search: its dimension in a sweep's space (docs/space.md); None: not searched.
        ours: whether its authors give no value, so that this one is our choice.
    """

    value: Any
    search: Mapping[str, Any] | None
    ours: bool = False


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a model consists of.

    Attributes:
        adam: its Adam settings: d and g, or the one of the two that trains the whole model.
        parts: which parts of the paper's discriminator it has: x, z, xz.
        leaky: which of the paper's networks it has, whose leaky slopes are searched.
        encodes: whether it has q(z | x): it encodes and reconstructs.
        generates: whether it has a prior over codes: it draws samples.
        classifies: whether it is trained with labels and classifies itself; otherwise SVMs do, on
            its features (§4.4).
        defaults: fields of Config whose default its authors, or we, set differently.
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


def _log(low: float, high: float) -> dict[str, Any]:
    return {"low": low, "high": high, "log": True}


_ADAM_VAE = {"lr_g": 3e-4, "beta1_g": 0.9}  # of M1, M2 and SDGM alike
# Of 3072; their weights have 514, too. With thousands of images, and not 600,000, few are better.
_PCA = Setting(600, {"choices": [20, 50, 150, 600]})

_ALI = Kind(
    adam=("d", "g"),
    parts=("x", "z", "xz"),
    leaky=("encoder", "decoder", "discriminator"),
    encodes=True,
    generates=True,
)
_GAN = Kind(adam=("d", "g"), parts=("x", "xz"), leaky=("decoder", "discriminator"), generates=True)
_M1 = Kind(
    adam=("g",),
    encodes=True,
    generates=True,
    defaults=_ADAM_VAE,
    settings={"z_size": Setting(300, {"choices": [50, 300]}), "components": _PCA},
)
_M2 = replace(
    _M1,
    classifies=True,
    settings={"label_weight": Setting(0.1, _log(0.01, 10.0)), **_M1.settings},  # α
)
_SDGM = replace(
    _M2,
    settings={
        # β: its authors' 0.1 to 2 is an α of 60 to 1200 with their 604,388 images; few need more.
        "label_weight": Setting(0.1, _log(0.1, 20.0)),
        "known_weight": Setting(1.0, _log(0.01, 1.0)),
        "z_size": Setting(300, {"choices": [100, 300]}, ours=True),
    },
)

KINDS: dict[Model, Kind] = {
    "ali": _ALI,
    "gan": _GAN,
    "ali-labels": replace(
        _ALI,
        classifies=True,
        settings={
            "label_weight": Setting(1.0, _log(0.1, 10.0), ours=True),
            "predict_z": Setting("mean", {"choices": ["mean", "sample"]}, ours=True),
        },
    ),
    "gan-labels": replace(
        _GAN,
        classifies=True,
        defaults={"lr_d": 3e-4, "lr_g": 3e-4},  # Salimans et al.; β₁ is 0.5, as ALI's
        settings={"label_weight": Setting(1.0, _log(0.1, 10.0))},
    ),
    "convnet": Kind(
        adam=("d",),
        parts=_GAN.parts,
        leaky=("discriminator",),
        classifies=True,
        defaults={"lr_d": 3e-4},
    ),
    "vae-m1": _M1,
    "vae-m2": _M2,
    "vae-m1m2": replace(
        _M2,
        settings={
            **_M2.settings,
            "z_size": Setting(50, {"choices": [50, 300]}, ours=True),
            "m1_epochs": Setting(None, None, ours=True),  # trials are compared epoch by epoch
        },
    ),
    "sdgm": _SDGM,
    "adgm": _SDGM,  # without one edge
    "swwae": Kind(
        adam=("g",),
        encodes=True,
        classifies=True,
        defaults={"lr_g": 1e-3, "beta1_g": 0.9},
        settings={
            "reconstruction_weight": Setting(1.0, _log(0.01, 10.0), ours=True),
            "middle_weight": Setting(0.2, _log(0.01, 1.0), ours=True),
            "dropout_fc": Setting(0.5, None, ours=True),  # Table 1 has it with and without
        },
    ),
}

# Fields of Config that are a setting of some model.
SETTINGS = frozenset(name for kind in KINDS.values() for name in kind.settings)
