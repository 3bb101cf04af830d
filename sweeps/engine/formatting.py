"""A configuration's hyperparameters as text, for progress, reports and pictures alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ali.catalog import KINDS

MISSING = "–"  # not searched, or as the paper's table has it
# heading: fields of Config shown under it, separated by slashes (E encoder, G decoder)
HYPERPARAMETERS = {
    "lr D/EG": ("lr_d", "lr_g"),
    "β₁ D/EG": ("beta1_d", "beta1_g"),
    "1−β₂ D/EG": ("beta2_d", "beta2_g"),
    "dropout x/z/xz": ("dropout_x", "dropout_z", "dropout_xz"),
    "slope E/G/D": ("slope_encoder", "slope_decoder", "slope_discriminator"),
    "bn D(x)": ("bn_x",),
}
OPTIONAL = {"σ₀": ("weight_std",), "batch": ("batch_size",)}  # shown where trials differ
MOST_TELLING = ("lr D/EG", "dropout x/z/xz", "bn D(x)")  # what fits in a line


def varied(configs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """HYPERPARAMETERS, and what else the configurations differ in: OPTIONAL, further dimensions."""

    def differ(*names: str) -> bool:
        return len({repr([config.get(name) for name in names]) for config in configs}) > 1

    known = HYPERPARAMETERS | OPTIONAL
    alike = {name for names in known.values() for name in names} | {"seed", "data_dir"}
    others = [name for name in (configs[0] if configs else {}) if name not in alike]
    more = {heading: names for heading, names in OPTIONAL.items() if differ(*names)}
    more |= {name.replace("_", " "): (name,) for name in others if differ(name)}
    return HYPERPARAMETERS | more


def format_hyperparameters(
    config: Mapping[str, Any], headings: Mapping[str, tuple[str, ...]] = HYPERPARAMETERS
) -> dict[str, str]:
    """The searched hyperparameters of a configuration (plain JSON types), by heading."""
    adam = KINDS[config.get("model", "ali")].adam  # a model with one optimiser has one rate
    lacking = {f"{name}_{who}" for name in ("lr", "beta1", "beta2") for who in {"d", "g"} - {*adam}}
    return {
        heading: "/".join(
            _format(name, None if name in lacking else config.get(name)) for name in names
        )
        for heading, names in headings.items()
    }


def format_line(config: Mapping[str, Any]) -> str:
    """The most telling hyperparameters in one line; those that are not searched are left out."""
    cells = format_hyperparameters(config)
    shown = [(heading, cells[heading]) for heading in MOST_TELLING]
    return ", ".join(f"{heading} {cell}" for heading, cell in shown if set(cell) - {MISSING, "/"})


def _format(name: str, value: Any) -> str:
    if value is None:
        return MISSING
    if name == "bn_x":
        return "".join("01"[on] for on in value)
    if isinstance(value, bool):
        return "01"[value]
    if isinstance(value, (int, str)):
        return str(value)
    if name == "weight_std" and value >= 0.0005:
        return f"{value:.3f}".lstrip("0")
    if name.startswith("lr") or 0 < abs(value) < 0.005:
        return f"{value:.1e}".replace("e-0", "e-")
    if name.startswith("beta2"):
        return f"{1 - value:.0e}".replace("e-0", "e-")
    return f"{value:.2f}".lstrip("0") or "0"
