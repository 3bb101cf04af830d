"""How a trial or a training ends: a state, and the reason in words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

# Keys in the last result that a trial reports to Tune.
END_STATE, END_REASON = "end_state", "end_reason"
LAST = "last_value"  # attribute of a study's trial whose stop was decided: epoch and value
REASON_CHARACTERS = 500  # a longer reason is cut


class EndState(Enum):
    """The ways to end; the values are shown to users and stored in MLflow and in the journal."""

    COMPLETED = "completed"  # reached its full budget
    STOPPED_EARLY = "stopped early"  # by the scheduler
    DIVERGED = "diverged"  # a loss or a weight became NaN or infinite, or a loss very large
    COLLAPSED = "collapsed"  # its samples stayed nearly identical
    OUT_OF_MEMORY = "out of memory"
    FAILED = "failed"
    INTERRUPTED = "interrupted"  # by the user; it can be resumed


@dataclass(frozen=True)
class Ending:
    """How something ended."""

    state: EndState
    reason: str

    def to_result(self) -> dict[str, str]:
        """As entries of a result, of a run's tags, or of a study's user attributes."""
        return {END_STATE: self.state.value, END_REASON: self.reason[:REASON_CHARACTERS]}

    @classmethod
    def from_result(cls, result: Mapping[str, Any]) -> Ending | None:
        """Inverse of `to_result`; None if there is no ending in it."""
        if END_STATE not in result:
            return None
        return cls(EndState(result[END_STATE]), result.get(END_REASON, ""))


# The ending of a trial until a resume retries it.
LOST = Ending(EndState.FAILED, "its worker was lost more often than --max-failures allows")
RETRIES = "retries"  # user attribute of a retry: number of the first try, whose checkpoints it has


def first_try(trial: FrozenTrial) -> int:
    """Number of the trial that this one retries; its own if it is the first try."""
    return trial.user_attrs.get(RETRIES, trial.number)


def lost_tries(trials: Iterable[FrozenTrial]) -> list[list[FrozenTrial]]:
    """The tries of each trial whose tries all ended as LOST, oldest first."""
    tries: dict[int, list[FrozenTrial]] = defaultdict(list)
    for trial in sorted(trials, key=lambda t: t.number):
        tries[first_try(trial)].append(trial)
    return [its for its in tries.values() if all(ending_of(t) == LOST for t in its)]


def ending_of(trial: FrozenTrial) -> Ending | None:
    """How a study's trial ended; None while it has not."""
    return Ending.from_result(trial.user_attrs) if trial.state.is_finished() else None


def decided(trial: FrozenTrial) -> Ending | None:
    """How a study's trial is about to end; None: it goes on, or has ended."""
    whole = END_REASON in trial.user_attrs  # earlier versions wrote the state first
    return Ending.from_result(trial.user_attrs) if whole and not trial.state.is_finished() else None


def is_broken(trial: FrozenTrial) -> bool:
    """Whether training diverged or collapsed: it ranks below all trials with a value."""
    ending = ending_of(trial)
    return ending is not None and ending.state in (EndState.DIVERGED, EndState.COLLAPSED)
