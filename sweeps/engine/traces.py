"""What an earlier driver has left of a sweep, checked before anything is written: it is all there,
and it comes from the same data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ali.errors import UserError
from sweeps.engine.journal import DATA
from sweeps.engine.options import JOURNAL, Options
from sweeps.engine.storage import Storage
from sweeps.engine.study import find_study, trial_id
from sweeps.engine.tracking.schema import TRIAL

if TYPE_CHECKING:
    from mlflow.entities import Run


@dataclass(frozen=True)
class Begun:
    """What the study of a sweep knows.

    Attributes:
        trials: ids of those that have begun.
        data: fingerprint of the data they have; None: not known yet.
    """

    trials: frozenset[str] = frozenset()
    data: str | None = None


def read_begun(options: Options) -> Begun:
    """Raises UserError if the journal is damaged."""
    study = find_study(options.folder / JOURNAL, options.name)
    if study is None:
        return Begun()
    trials = study.get_trials(deepcopy=False)
    ids = frozenset(trial_id(t.number) for t in trials if t.state.name != "WAITING")
    return Begun(ids, study.user_attrs.get(DATA))


def refuse_lost_trials(
    begun: Begun, options: Options, storage: Storage, logged: Iterable[Run] = ()
) -> None:
    """Raises UserError if the storage or MLflow (`logged`) has trials that the study lacks.

    A kill leaves none: the study is the first to know a trial. New ones would be begun in the old
    ones' runs and from their checkpoints. With a bucket the study is a copy, seconds old.
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

    Studies of earlier versions do not know it, but the trials' runs (`logged`) do.
    """
    of_runs = {run.data.params[DATA] for run in logged if DATA in run.data.params}
    before = {begun.data} if begun.data else of_runs
    if before and before != {fingerprint}:
        raise UserError(
            f"the data is not that of the trials of sweep {options.name!r} so far (fingerprint "
            f"{', '.join(sorted(before))}, now {fingerprint}): put the files back as they were, "
            "give their --data-dir, or start a sweep with another --name"
        )
