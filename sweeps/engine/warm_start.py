"""The best configurations of an earlier sweep as the first points of a new one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ali.config import Config
from ali.errors import UserError
from sweeps.engine.dimensions import label
from sweeps.engine.journal import CONFIG
from sweeps.engine.options import JOURNAL, Location, Options
from sweeps.engine.points import fitted, params_of
from sweeps.engine.results import load_study
from sweeps.engine.space import PAPER_VALUES, InitialPoint, Space

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

BEST_TAKEN = 5  # configurations of the earlier sweep, at most


def warm_points(
    options: Options, space: Space, base: Config, known: Sequence[InitialPoint] = ()
) -> list[InitialPoint]:
    """The best configurations of the sweep --warm-start, best first, moved into `space`.

    Duplicates of `known` or of each other are left out. The sweep's data, width and budget may
    differ. Raises UserError if it is missing, or none of its trials has completed.
    """
    from sweeps.engine.study import best_trials

    if options.warm_start is None:
        return []
    if options.warm_start == options.name:
        raise UserError(f"--warm-start {options.name!r} is this sweep's own name: name another")
    try:
        earlier = Location(
            name=options.warm_start,
            output_dir=options.output_dir,
            storage_path=options.storage_path,
        )
        if earlier.storage.remote and not (earlier.folder / JOURNAL).exists():
            earlier.storage.fetch(earlier.folder / JOURNAL)
        best = best_trials(load_study(earlier).get_trials(deepcopy=False))
    except UserError as error:
        raise UserError(f"--warm-start {options.warm_start}: {error}") from None
    if not best:
        raise UserError(
            f"no trial of sweep {options.warm_start!r} has completed its full budget: "
            "leave --warm-start out, or name another sweep"
        )
    seen = [fitted(point.params, space, base) for point in known]
    found: list[InitialPoint] = []
    for point in (moved(trial, space, base) for trial in best):
        if point.params not in seen and len(found) < BEST_TAKEN:
            seen.append(point.params)
            found.append(point)
    return found


def moved(trial: FrozenTrial, space: Space, base: Config) -> InitialPoint:
    """A trial's point in `space`: the nearest value where its own lies outside.

    What its own space had fixed, and this one searches, is taken from its configuration.
    """
    config = trial.user_attrs.get(CONFIG, {})
    own = {name: label(name, config[name]) for name in space.extra if name in config}
    params = fitted({**params_of(config), **trial.params, **own}, space, base)
    return InitialPoint(params, tuple(trial.user_attrs.get(PAPER_VALUES, ())))
