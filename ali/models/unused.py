"""Settings that nothing reads with such data or such a model: refused where a user gives them.

`Config` accepts them, since files, checkpoints and sweeps of earlier versions may hold them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ali.catalog import KINDS
from ali.config import Config
from ali.errors import UserError
from ali.models.tables import LEAKY, paper_table

GROUPS = ("dropout", "slope", "lr", "beta1", "beta2")  # of fields: dropout_x, dropout_z, dropout_xz


def without_effect(config: Config) -> dict[str, str]:
    """The fields that nothing reads in such an experiment, each with the option that decides it."""
    kind, table = KINDS[config.model], paper_table(config)
    data, model = f"with --data {config.data}", f"with --model {config.model}"
    found = {}
    if config.data != "folder":  # its images' size is the table's
        found["image_size"] = data
    if config.data != "mixture":
        found["modes"] = data
    elif config.precision == "bf16":  # points are computed in fp32
        found["precision"] = data
    if config.data == "mixture" or (config.data == "celeba" and config.attribute is None):
        why = data if config.data == "mixture" else f"{data} without --attribute"
        found |= dict.fromkeys(("labels", "balanced", "draws"), why)
    if not kind.classifies:
        found["draw"] = model
    for part, rows in {"x": table.d_x, "z": table.d_z, "xz": table.d_xz}.items():
        if part not in kind.parts or not rows:
            why = data if part in kind.parts else model
            found |= dict.fromkeys((f"dropout_{part}", f"bn_{part}"), why)
    discriminator = table.d_x + table.d_z + table.d_xz
    leaky = {"encoder": table.encoder, "decoder": table.decoder, "discriminator": discriminator}
    for who, rows in leaky.items():
        if who not in kind.leaky or all(row.nonlinearity != LEAKY for row in rows):
            found[f"slope_{who}"] = data if who in kind.leaky else model
    for who in {"d", "g"} - set(kind.adam):
        found |= dict.fromkeys((f"lr_{who}", f"beta1_{who}", f"beta2_{who}"), model)
    return found


def stands_for_a_group(name: str, values: Mapping[str, Any], unused: Mapping[str, str]) -> bool:
    """Whether a field that is read has the same value: one dropout, slope or rate for all."""
    group, _, _ = name.rpartition("_")
    return group in GROUPS and any(
        other.rpartition("_")[0] == group and other not in unused and value == values[name]
        for other, value in values.items()
    )


def is_default(config: Config, name: str, value: Any) -> bool:
    """Whether a field's value is its default, of ALI or of the model: files hold all of them."""
    return value in (getattr(Config, name), getattr(Config.of_model(config.model), name))


def refuse_unused(config: Config, unused: Mapping[str, str], saved: Config | None = None) -> None:
    """Raises UserError for a field of `unused`, which have no effect, unless it has its default.

    Accepted, too, is a value for a whole group, as a sweep's space may have it, and what `saved`
    has, the settings of the run that is resumed or of the file that is named.
    """
    values = dataclasses.asdict(config)
    for name, why in unused.items():
        kept = saved is not None and getattr(saved, name) == values[name]
        accepted = kept or stands_for_a_group(name, values, unused)
        if not accepted and not is_default(config, name, values[name]):
            raise UserError(f"--{name.replace('_', '-')} has no effect {why}: leave it out")
