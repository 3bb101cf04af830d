"""Which checkpoints stay on disk: the last one of each of the best trials."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from optuna.trial import FrozenTrial

from sweeps.engine.endings import lost_tries
from sweeps.engine.mirror import JournalMirror
from sweeps.engine.study import trial_id


def delete_checkpoints(
    mirror: JournalMirror, ended: Sequence[FrozenTrial], best: Sequence[FrozenTrial]
) -> list[FrozenTrial]:
    """Deletes the checkpoints of ended trials, except the last one of each of the best.

    A trial that lost too many workers keeps its last, too, until a retry of it has ended. First
    the journal is copied to the bucket: without it, a resume on another machine would continue
    ended trials. Raises OSError or UserError if the bucket is unavailable.
    Returns the trials that keep one: the only ones to check when another has ended.
    """
    mirror.copy()
    storage = mirror.storage
    numbers = {trial.number for trial in chain(best, *lost_tries(ended))}
    for trial in ended:
        found = storage.checkpoints(trial_id(trial.number))
        for checkpoint in found[:-1] if trial.number in numbers else found:
            storage.delete(checkpoint)
    return [trial for trial in ended if trial.number in numbers]
