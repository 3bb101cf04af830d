"""What a sweep found, as tables: `text` prints them, `page` makes HTML of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ali.metrics import EPOCH, NEAR_MODES, SAMPLE_DISTANCE, SAMPLE_DIVERSITY, SAMPLE_SEPARATION
from sweeps.engine.endings import first_try
from sweeps.engine.formatting import MISSING, format_hyperparameters, varied
from sweeps.engine.pareto import front
from sweeps.engine.reporting.findings import BEST_SHOWN, NOT_ENDED, Findings
from sweeps.engine.reporting.table import Table
from sweeps.engine.results import TrialResult
from sweeps.engine.study import trial_id
from sweeps.engine.tracking.schema import (
    DRIVER_SECONDS,
    SLOT_USE,
    TOTAL_CORE_SECONDS,
    TOTAL_EVAL_SECONDS,
    TOTAL_TRAIN_SECONDS,
)

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

QUALITY = {  # metric shown beside the objective: heading
    SAMPLE_DISTANCE: "distance",
    SAMPLE_DIVERSITY: "diversity",
    SAMPLE_SEPARATION: "separation",
    NEAR_MODES: "near modes",
}


def best_table(found: Findings, shown: int = BEST_SHOWN) -> Table:
    """The best trials with what to expect of them, their measures and hyperparameters."""
    options, best = found.options, found.complete[:shown]
    logged = {key for run in found.runs for key in run.data.metrics} - {found.objective}
    parts = {key: key for key in found.parts} | QUALITY
    beside = {key: heading for key, heading in parts.items() if key in logged}
    headings = varied([trial.config for trial in best])
    rows = []
    for trial in best:
        metrics = found.metrics_of(trial)
        values = [f"{trial.value:.4f}", f"{found.expected(trial).mean:.4f}"]
        for key in beside:
            digits = 2 if key in QUALITY else 4
            values.append(f"{metrics.get(key, math.nan):.{digits}f}")
        cells = format_hyperparameters(trial.config, headings).values()
        rows.append((trial.trial_id, *values, *cells))
    lacks = any(MISSING in cell for row in rows for cell in row)
    return Table(
        f"Best trials of {options.name} at their full budget of {options.epochs} epochs",
        ("trial", found.objective, "expected", *beside.values(), *headings),
        rows,
        f"{MISSING}: not searched, or as the paper's table has it" if lacks else "",
    )


def pareto(found: Findings) -> Table | str | None:
    """The trials that are best in the objective and the quality of samples together."""
    points, objective = {}, found.objective
    for trial in found.complete:
        distance = found.metrics_of(trial).get(SAMPLE_DISTANCE)
        if trial.value is not None and distance is not None:
            points[trial.trial_id] = (found.sign * trial.value, distance)
    if objective == SAMPLE_DISTANCE or len(points) < 2:
        return None
    names = front(points)
    if len(names) == 1:
        end = "lowest" if found.sign > 0 else "highest"
        return f"Trial {names[0]} has the {end} {objective} and the lowest {SAMPLE_DISTANCE}."
    return Table(
        f"Best in {objective} and {SAMPLE_DISTANCE} together (Pareto front)",
        ("trial", objective, SAMPLE_DISTANCE),
        [(name, f"{found.sign * points[name][0]:.4f}", f"{points[name][1]:.2f}") for name in names],
    )


def ends_table(trials: Sequence[TrialResult]) -> Table:
    """How many trials ended in which way, and why the first of them did."""
    groups: dict[str, list[TrialResult]] = defaultdict(list)
    for trial in trials:
        groups[trial.ending.state.value if trial.ending else NOT_ENDED].append(trial)
    rows = []
    for end, group in sorted(groups.items()):
        group.sort(key=lambda trial: trial.trial_id)
        epochs = [max(trial.values, default=0) for trial in group]
        why = [f"{t.trial_id}: {t.ending.reason}" if t.ending else t.trial_id for t in group[:3]]
        span = f"{min(epochs)}–{max(epochs)}" if min(epochs) < max(epochs) else f"{epochs[0]}"
        rows.append((end, str(len(group)), span, "\n".join(why)))
    headings = ("end", "trials", "epochs", "why (the first three)")
    return Table("How trials ended", headings, rows, left=headings)


def trials_table(found: Findings) -> Table:
    """Every trial: its value, how it ended and its hyperparameters."""
    headings = varied([trial.config for trial in found.trials])
    rows = []
    for trial in sorted(found.trials, key=lambda trial: trial.trial_id):
        end = trial.ending.state.value if trial.ending else NOT_ENDED
        value = MISSING if trial.value is None else f"{trial.value:.4f}"
        epochs, again = str(max(trial.values, default=0)), trial.confirms or ""
        cells = format_hyperparameters(trial.config, headings).values()
        rows.append((trial.trial_id, end, epochs, value, again, *cells))
    own = ("trial", "end", "epochs", found.objective, "confirms")
    return Table("All trials", (*own, *headings), rows, left=("end",))


def last_tries(trials: Sequence[FrozenTrial]) -> set[str]:
    """Ids of trials, of those that were retried the last try, which goes on with all before it."""
    tries = {first_try(t): t.number for t in sorted(trials, key=lambda t: t.number)}
    return {trial_id(number) for number in tries.values()}


def cost_table(found: Findings) -> Table:
    """What the trials took."""
    counted = last_tries(found.frozen)
    metrics = [run.data.metrics for name, run in found.by_id.items() if name in counted]
    train = sum(m.get(TOTAL_TRAIN_SECONDS, 0.0) for m in metrics)
    evaluation = sum(m.get(TOTAL_EVAL_SECONDS, 0.0) for m in metrics)
    cores = sum(m.get(TOTAL_CORE_SECONDS, 0.0) for m in metrics)
    row = (
        str(len(metrics)),
        str(sum(int(m.get(EPOCH, 0)) for m in metrics)),
        f"{train:.0f}",
        f"{evaluation:.0f}",
        f"{(train + evaluation) / max(1, len(metrics)):.1f}",
        f"{cores / 3600:.2f}",
    )
    headings = ("trials", "epochs", "training s", "evaluation s", "s/trial", "core-hours")
    return Table("Time and cost", headings, [row])


def slot_use(found: Findings) -> str:
    """How much of its slots' time the last driver used, in a sentence; empty until it has ended."""
    known = found.parent.data.metrics if found.parent else {}
    if SLOT_USE not in known:
        return ""
    return f"slots were in use {known[SLOT_USE]:.0%} of {known[DRIVER_SECONDS]:.0f} s"
