"""Checks, before anything is written, that what an earlier driver left of a sweep is complete,
and comes from the same data."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ali.errors import UserError
from sweeps.engine.journal import DATA, SPACE
from sweeps.engine.objective import Objective
from sweeps.engine.options import JOURNAL, RESUME_MAY_CHANGE, Options, read_options
from sweeps.engine.space import Space
from sweeps.engine.storage import Storage
from sweeps.engine.study import find_study, trial_id
from sweeps.engine.tracking.runs import data_of
from sweeps.engine.tracking.schema import TRIAL

if TYPE_CHECKING:
    from mlflow.entities import Run


@dataclass(frozen=True)
class Begun:
    """What the study of a sweep holds.

    Attributes:
        trials: ids of the trials that have begun.
        data: fingerprint of their data; None: not known yet.
        maximize: whether the higher objective is better.
        space: their search space (`Space.to_dict`); None: not known.
    """

    trials: frozenset[str] = frozenset()
    data: str | None = None
    space: dict[str, Any] | None = None
    maximize: bool = False


def read_begun(options: Options) -> Begun:
    """Raises UserError if the journal is damaged."""
    study = find_study(options.folder / JOURNAL, options.name)
    if study is None:
        return Begun()
    trials = study.get_trials(deepcopy=False)
    ids = frozenset(trial_id(t.number) for t in trials if t.state.name != "WAITING")
    known = study.user_attrs
    return Begun(ids, known.get(DATA), known.get(SPACE), study.direction.name == "MAXIMIZE")


def refuse_other_options(options: Options) -> None:
    """Raises UserError if a resume from Python changes options that it may not change."""
    if not (saved := read_options(options.folder)):
        return
    before, now = Options.from_dict(saved).absolute(), options.absolute()
    names = [f.name for f in fields(Options) if f.name not in RESUME_MAY_CHANGE]
    if changed := [name for name in names if getattr(before, name) != getattr(now, name)]:
        was = ", ".join(f"{name}={getattr(before, name)!r}" for name in changed)
        raise UserError(
            f"sweep {options.name!r} was started with {was}: resume it with the same, or start a "
            "sweep with another --name"
        )


def refuse_lost_trials(
    begun: Begun, options: Options, storage: Storage, logged: Iterable[Run] = ()
) -> None:
    """Raises UserError if the storage or MLflow (`logged`) has trials that the study lacks.

    A kill cannot cause this: the study has each trial first. New trials would reuse the old ones'
    runs and checkpoints. With a bucket, the study is a copy that is seconds old.
    """
    if begun.trials and storage.remote:
        return
    lost = sorted(({run.data.tags[TRIAL] for run in logged} | storage.trials()) - begun.trials)
    if lost:
        shown = ", ".join(lost[:3]) + (", …" if len(lost) > 3 else "")
        raise UserError(
            f"{options.folder / JOURNAL} lacks {shown}, of which MLflow or {storage.folder} has "
            "records: it is gone, or an old copy; restore the file, or start a sweep with another "
            "--name"
        )


def refuse_other_data(
    begun: Begun, options: Options, fingerprint: str, logged: Iterable[Run] = ()
) -> None:
    """Raises UserError if the trials so far had other data.

    Studies of earlier versions lack it, but the trials' runs (`logged`) have it.
    """
    of_runs = {data for run in logged if (data := data_of(run))}
    before = {begun.data} if begun.data else of_runs
    if before and before != {fingerprint}:
        raise UserError(
            f"the data is not that of the trials of sweep {options.name!r} so far (fingerprint "
            f"{', '.join(sorted(before))}, now {fingerprint}): put the files back as they were, "
            "give their --data-dir, or start a sweep with another --name"
        )


def refuse_other_objective(begun: Begun, options: Options, objective: Objective) -> None:
    """Raises UserError if the trials so far had the other direction."""
    if begun.trials and begun.maximize != objective.maximize:
        raise UserError(
            f"sweep {options.name!r} does not {objective.verb} {objective.name}: its trials were "
            "compared the other way round; leave it so, or start a sweep with another --name"
        )


def begun_space(begun: Begun, options: Options, asked: Callable[[], Space]) -> Space:
    """The space that a sweep was begun with; `asked()` if it is new, or of an earlier version.

    A resume without --space, or with the same file, keeps it, even if the file was changed or
    deleted. Raises UserError if another space is asked for.
    """
    if begun.space is None:
        return asked()
    saved = read_options(options.folder).get("space")
    if options.space and str(options.space.resolve()) == saved:
        with contextlib.suppress(UserError):
            if asked().to_dict() != begun.space:
                print(f"note: {saved} has changed; the sweep keeps the space it was begun with")
        return Space.from_dict(begun.space)
    before, now = begun.space, asked().to_dict()
    if other := sorted(k for k in before | now if before.get(k) != now.get(k)):
        raise UserError(
            f"the space is not that of sweep {options.name!r} so far ({_shown(other, before)}; "
            f"now {_shown(other, now)}): leave it as it was, or start a sweep with another --name"
        )
    return asked()


def _shown(names: list[str], plain: dict[str, Any]) -> str:
    more = ", …" if len(names) > 2 else ""
    return ", ".join(f"{name} {plain.get(name, 'not given')}" for name in names[:2]) + more
