"""The best configurations of an earlier sweep as the first points of a new one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ali.config import Config
from ali.errors import UserError
from sweeps.engine.options import JOURNAL, Location, Options
from sweeps.engine.results import load_study
from sweeps.engine.space import PAPER_VALUES, InitialPoint, Space, suggest

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

BEST_TAKEN = 5  # configurations of the earlier sweep, at most


def warm_points(
    options: Options, space: Space, base: Config, known: Sequence[InitialPoint] = ()
) -> list[InitialPoint]:
    """The best configurations of the sweep --warm-start, best first, moved into `space`.

    Those that `known` has already, or an earlier of them, are left out. Its data, width and budget
    may differ. Raises UserError if it is not there, or none of its trials has completed.
    """
    from sweeps.engine.study import best_trials

    if options.warm_start is None:
        return []
    if options.warm_start == options.name:
        raise UserError(f"--warm-start {options.name!r} is this sweep's own name: name another")
    earlier = Location(
        name=options.warm_start, output_dir=options.output_dir, storage_path=options.storage_path
    )
    if earlier.storage.remote and not (earlier.folder / JOURNAL).exists():
        earlier.storage.fetch(earlier.folder / JOURNAL)
    try:
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

    What `space` has and the trial had not is left to the search.
    """
    params = fitted(trial.params, space, base)
    return InitialPoint(params, tuple(trial.user_attrs.get(PAPER_VALUES, ())))


def fitted(params: dict[str, Any], space: Space, base: Config) -> dict[str, Any]:
    """Those of `params` that `space` has, each at the nearest value in it."""
    stand_in = _Fitted(params)
    suggest(stand_in, space, base)  # type: ignore[arg-type]
    return stand_in.params


class _Fitted:
    """Takes the place of a trial: each value that is asked for is the given one, or the nearest."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given, self.params, self.user_attrs = given, dict[str, Any](), dict[str, Any]()

    def suggest_float(self, name: str, low: float, high: float, log: bool = False) -> float:
        if name not in self.given:
            return low
        self.params[name] = min(max(self.given[name], low), high)
        return self.params[name]

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        if self.given.get(name) not in choices:
            return choices[0]
        self.params[name] = self.given[name]
        return self.params[name]
