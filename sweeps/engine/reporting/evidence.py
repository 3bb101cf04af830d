"""How reliable a sweep's findings are: fresh seeds, collapse, and importance beside chance."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ali.metrics import COLLAPSED, LOSS
from sweeps.engine.confirmation import (
    CONFIRMS,
    MIN_FREEDOM,
    Confirmed,
    controls,
    interval_text,
)
from sweeps.engine.estimate import Estimate
from sweeps.engine.formatting import MISSING
from sweeps.engine.reporting.table import Table, without_empty
from sweeps.engine.results import valued
from sweeps.engine.study import trial_id

if TYPE_CHECKING:
    from mlflow.entities import Run
    from optuna.trial import FrozenTrial

    from sweeps.engine.importance import Importance

SURE = 0.95  # least probability at which a difference is no tie


def has_collapsed(run: Run) -> bool:
    """Whether a trial's samples were nearly identical, or a few pictures repeated, at the end.

    Not of a VAE and the like, which decode to means: these are alike without a collapse.
    """
    known = run.data.metrics
    return LOSS not in known and any(known.get(key, math.inf) < v for key, v in COLLAPSED.items())


def control_of(trials: Sequence[FrozenTrial]) -> int | None:
    """Number of the trial at the paper's own point, if the sweep has one."""
    return next(iter(controls(trials)), None)


def announcement(
    found: Sequence[Confirmed],
    known: Mapping[int, Estimate],
    control: int | None,
    best: str | None = None,
) -> str:
    """The winner on fresh seeds, what to expect of it, and how sure that is, in one line.

    `best`: the best trial's id; if it has no run with a fresh seed, that is said first.
    """
    first, *others = found
    line = "Confirmed:"
    if best is not None and best not in map(_id, found):
        line = f"Not confirmed: trial {best}, ahead with one seed only. Of those repeated,"
    line += f" the configuration of trial {_id(first)} has {first.mean:.4f}"
    line += f" over {len(first.values)} fresh seed{'s' * (len(first.values) > 1)}"
    expected = known[first.number]
    line += f"; expect {expected.mean:.4f}"
    if shown := interval_text(expected):
        line += f" (95 % interval {shown})"
    paper = next((c for c in others if c.number == control), None)
    rivals = [(paper, "the paper's point")] if paper else []
    second = next((c for c in others if c.number != control), None)
    rivals += [(second, f"the second, {_id(second)}")] if second else []
    for rival, name in rivals:
        assert rival is not None
        line += f"; better than {name}, with probability {expected.beats(known[rival.number]):.0%}"
    return line + ".\n"


def confirmation_table(
    found: Sequence[Confirmed],
    known: Mapping[int, Estimate],
    by_id: Mapping[str, Run],
    trials: Sequence[FrozenTrial],
) -> Table:
    """Objective over fresh seeds, and expected; what cannot be told from the best is a tie."""
    control = control_of(trials)
    again: dict[int, list[str]] = defaultdict(list)
    for trial in trials:
        if CONFIRMS in trial.user_attrs:
            again[trial.user_attrs[CONFIRMS]].append(trial_id(trial.number))
    rows = []
    for one in found:
        collapsed = sum(name in by_id and has_collapsed(by_id[name]) for name in again[one.number])
        expected = known[one.number]
        behind = known[found[0].number].beats(expected)
        verdict = "worse" if behind >= SURE else "tie: cannot be told apart"
        rows.append(
            (
                _id(one) + (" (the paper's)" if one.number == control else ""),
                f"{one.mean:.4f}",
                f"{one.std:.4f}" if len(one.values) > 1 else MISSING,
                f"{len(one.values)}" + (f", {one.diverged} diverged" if one.diverged else ""),
                f"{collapsed}",
                f"{expected.mean:.4f}",
                interval_text(expected) or MISSING,
                "" if one is found[0] else verdict,
            )
        )
    headings = ("configuration of", "mean", "std", "seeds", "collapsed", "expected")
    caption = "expected: the mean over other seeds, from its runs and those of all others"
    if not any(interval_text(known[one.number]) for one in found):
        caption += f"; its interval takes {MIN_FREEDOM} repetitions, of one or of several"
    table = Table(
        "Confirmation, on fresh seeds",
        (*headings, "95 % interval", "against the first"),
        rows,
        caption,
        left=("against the first",),
    )
    return without_empty(table)


def _id(one: Confirmed) -> str:
    return trial_id(one.number)


def importance_of(trials: Sequence[FrozenTrial]) -> Importance:
    """Importance in trials with values: a stopped one has its last, a diverged one the worst."""
    from sweeps.engine.importance import importance

    return importance(valued(trials))


def importance_table(found: Importance) -> Table | str:
    """The shares that exceed chance, or a sentence that says why there are none."""
    if not found.shares:
        return f"Importance: {found.why_none}."
    if not found.significant:
        first = found.shares[0]
        return (
            f"Importance: none can be told from chance in {found.trials} trials. The largest "
            f"share, {first.value:.0%} of {first.name}, is below the {found.chance:.0%} that "
            f"shuffled values reach; it would take some {found.trials_needed} trials."
        )
    rows = [
        (share.name, f"{share.value:.0%}", f"{share.low:.0%} to {share.high:.0%}")
        for share in found.significant
    ]
    return Table(
        f"Importance, from {found.trials} trials",
        ("hyperparameter", "share", "90 % interval"),
        rows,
        f"Shares up to {found.chance:.0%} are chance, and left out.",
        left=("hyperparameter",),
        bars=[share.value for share in found.significant],
    )


def what_mattered(found: Importance) -> str:
    """Importance in a sentence."""
    table = importance_table(found)
    if isinstance(table, str):
        return table
    shares = [f"{name} {share} (90 % interval {interval})" for name, share, interval in table.rows]
    return f"What mattered: {', '.join(shares)}; shares up to {found.chance:.0%} are chance."
