"""Options of a sweep, and dimensions of its space, that would have no effect."""

from __future__ import annotations

from collections.abc import Mapping

from ali.config import Config
from ali.errors import UserError
from ali.models.unused import is_default, refuse_unused, stands_for_a_group
from sweeps.engine import dimensions
from sweeps.engine.options import Options
from sweeps.engine.space import Space

# A switch of the search, and the fields that must be read if it is on.
_ON = {"adam_apart": ("lr_d", "lr_g"), "bn": ("bn_x",)}


def refuse_without_effect(options: Options, space: Space, unused: Mapping[str, str]) -> None:
    """Raises UserError for what a user asks of a new sweep in vain.

    `unused`: the fields of Config that its experiment does not read, each with the reason.
    """
    base = options.config()
    refuse_unused(base, unused)
    if space.bn_with_z and {"bn_z", "bn_xz"} <= unused.keys():
        if options.bn_with_z:
            raise UserError(f"--bn-with-z has no effect {unused['bn_xz']}: leave it out")
        raise dimensions.refuse("bn_with_z", f"has no effect {unused['bn_xz']}: leave it out")
    for name, why in _unused_dimensions(space, base, unused):
        raise dimensions.refuse(name, f"has no effect {why}: leave it out")
    if not (options.race or options.confirm) and options.confirm_seeds != Options.confirm_seeds:
        raise UserError(
            "--confirm-seeds has no effect without --race or --confirm: give one, or leave it out"
        )


def _unused_dimensions(
    space: Space, base: Config, unused: Mapping[str, str]
) -> list[tuple[str, str]]:
    found = [(name, unused[name]) for name in space.extra if name in unused]
    for name, value in space.fixed.items():
        if name in _ON:
            lacking = [unused[field] for field in _ON[name] if field in unused]
            found += [(name, why) for why in lacking if value]
        elif name in unused and not (
            is_default(base, name, value) or stands_for_a_group(name, space.fixed, unused)
        ):
            found.append((dimensions.given_as(name, space.fixed), unused[name]))
    given, usual = space.to_dict(), Space().to_dict()
    for group, fields in dimensions.GROUPS.items():
        if given[group] != usual[group] and all(one in unused for one in fields):
            found.append((group, unused[fields[0]]))
    return found
