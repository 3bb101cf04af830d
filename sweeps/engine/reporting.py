"""What a sweep found: best trials, importance, how trials ended and why, and what it cost."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from ali.metrics import (
    COLLAPSED,
    EPOCH,
    NEAR_MODES,
    RAW_PIXEL_ERROR,
    SAMPLE_DISTANCE,
    SAMPLE_DIVERSITY,
    UNTRAINED_BN_ERROR,
    UNTRAINED_ERROR,
)
from ali.output import console, without_password
from sweeps.engine.confirmation import (
    CONFIRMS,
    CONTROL,
    Confirmed,
    Estimate,
    confirmed,
    estimates,
    interval_text,
)
from sweeps.engine.formatting import HYPERPARAMETERS, MISSING, format_hyperparameters, varied
from sweeps.engine.options import Location, Options, saved_options
from sweeps.engine.pareto import front
from sweeps.engine.results import TrialResult, load_study, ranked, valued
from sweeps.engine.scripts import script_command
from sweeps.engine.study import trial_id
from sweeps.engine.tracking import runs
from sweeps.engine.tracking.client import connect, is_database
from sweeps.engine.tracking.schema import (
    DRIVER_SECONDS,
    KIND_TRIAL,
    SLOT_USE,
    TOTAL_CORE_SECONDS,
    TOTAL_EVAL_SECONDS,
    TOTAL_TRAIN_SECONDS,
    TRIAL,
)
from sweeps.engine.tracking.view import view_path

if TYPE_CHECKING:
    import optuna
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from optuna.trial import FrozenTrial

BEST_SHOWN = 10
QUALITY = {  # metric shown beside the objective: heading
    SAMPLE_DISTANCE: "distance",
    SAMPLE_DIVERSITY: "diversity",
    NEAR_MODES: "near modes",
}
WIDTH = 118  # characters of a printed report
OPTIONAL_WIDTH = 6  # more for each hyperparameter that is not searched by default
SURE = 0.95  # probability from which on a difference is no tie
COLLAPSED_WORDS, UNTRAINED = "which has collapsed", "which is no better than untrained"
Runs = dict[str, "Run"]  # of trials, by id


def report(options: Options, study: optuna.Study, client: MlflowClient, experiment: str) -> str:
    """The report of a sweep as text: tables 118 columns wide, more with optional hyperparameters.

    The commands that come next are at its end.
    """
    found = runs.find_runs(client, experiment, sweep=options.name, kind=KIND_TRIAL)
    by_id = {run.data.tags[TRIAL]: run for run in found}
    frozen = study.get_trials(deepcopy=False)
    trials = ranked(frozen)
    begun = [trial for trial in trials if trial.config]
    out = io.StringIO()
    more = len(varied([trial.config for trial in begun])) - len(HYPERPARAMETERS)
    width = WIDTH + OPTIONAL_WIDTH * more
    text = console(file=out, width=width, color_system=None)
    parent = runs.find_sweep(client, experiment, options.name)
    doubts: list[str] = []
    if parent:
        complete = [trial for trial in trials if trial.complete and trial.confirms is None]
        best = complete[:BEST_SHOWN]
        again = [c for c in confirmed(frozen) if c.values]
        if best:
            values = runs_of(best[0], again)
            doubts = _doubts(best[0], values, by_id, parent)
            if UNTRAINED in doubts:
                text.print(_too_short(options, values, parent), soft_wrap=True)
        text.print(_best(options, best, by_id, runs.objective_of(parent)))
        for line in _notes(parent, best, by_id):
            text.print(line)
        if shown := _pareto(complete, by_id, parent):
            text.print(shown)
        if again:
            known, control = estimates(frozen), control_of(frozen)
            ahead = best[0].trial_id if best else None
            text.print(announcement(again, known, control, ahead))
            text.print(_confirmation(again, known, by_id, frozen))
    text.print(_ends(begun))
    text.print(_importance(frozen))
    text.print(_cost(by_id))
    if parent and SLOT_USE in parent.data.metrics:
        use, seconds = (parent.data.metrics[key] for key in (SLOT_USE, DRIVER_SECONDS))
        text.print(f"slots were in use {use:.0%} of {seconds:.0f} s\n")
    if lost := runs.lost_records(found):
        text.print(f"{lost}\n", soft_wrap=True)
    text.print("Next:")
    for what, line in _next_commands(options, doubts, experiment):
        text.print(f"  {what:<20}  {line}", soft_wrap=True)
    return out.getvalue()


def show_report(location: Location) -> None:
    """Prints the report of a sweep."""
    options = saved_options(location)
    study = load_study(options)
    client = connect(options.uri, existing=True)
    print(report(options, study, client, runs.experiment_of(client, options.name)), end="")


def has_collapsed(run: Run) -> bool:
    """Whether a trial's samples were nearly identical at the end, whatever its objective."""
    return run.data.metrics.get(SAMPLE_DIVERSITY, math.inf) < COLLAPSED


def untrained_error(parent: Run) -> float:
    """The lowest val_error without training of a sweep, infinity if that is not its objective."""
    known = parent.data.metrics
    return min(known.get(name, math.inf) for name in (UNTRAINED_ERROR, UNTRAINED_BN_ERROR))


def runs_of(trial: TrialResult, again: Sequence[Confirmed]) -> list[float]:
    """The objective of a completed trial and of those that repeat its configuration."""
    assert trial.value is not None
    return [trial.value, *next((c.values for c in again if _id(c) == trial.trial_id), ())]


def _doubts(best: TrialResult, values: Sequence[float], by_id: Runs, parent: Run) -> list[str]:
    """What speaks against the best trial, whose runs have `values`: words that follow its name."""
    run = by_id.get(best.trial_id)
    collapsed = [COLLAPSED_WORDS] if run and has_collapsed(run) else []
    return collapsed + ([UNTRAINED] if mean(values) >= untrained_error(parent) else [])


def _too_short(options: Options, values: Sequence[float], parent: Run) -> str:
    several = f" on average over {len(values)} seeds" if len(values) > 1 else ""
    found, untrained = f"{mean(values):.4f}{several}", f"{untrained_error(parent):.4f}"
    return (
        f"{options.epochs} epochs are too short: the best trial, {found}, is no better than an "
        f"untrained encoder, {untrained}. The ranking below says little; start a sweep with more "
        "--epochs.\n"
    )


def _next_commands(
    options: Options, doubts: Sequence[str], experiment: str
) -> Iterator[tuple[str, str]]:
    uri, local = without_password(options.uri), is_database(options.uri)
    server = "http://127.0.0.1:5000" if local else uri
    link = f"{server}/{view_path(experiment, options.name)}"
    yield "compare the runs", script_command("ui.py", *options.arguments()) if local else link
    if local:
        yield "then open", link
    yield ", ".join(["train the best", *doubts]), script_command("best.py", *options.arguments())


def _best(options: Options, best: Sequence[TrialResult], by_id: Runs, objective: str) -> Table:
    table = Table(
        title=f"Best trials of {options.name} at their full budget of {options.epochs} epochs",
        caption=f"{MISSING}: not searched, or as the paper's table has it",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),  # every column whole within the console's width
        pad_edge=False,
    )
    logged = {key for run in by_id.values() for key in run.data.metrics}
    quality = [key for key in QUALITY if key in logged and key != objective]
    headings = varied([trial.config for trial in best])
    for heading in ("trial", objective, *(QUALITY[key] for key in quality), *headings):
        table.add_column(heading, justify="right", no_wrap=True)
    for trial in best:
        run = by_id.get(trial.trial_id)
        metrics = run.data.metrics if run else {}
        values = [f"{trial.value:.4f}"]
        values += [f"{metrics.get(key, math.nan):.2f}" for key in quality]
        table.add_row(
            trial.trial_id, *values, *format_hyperparameters(trial.config, headings).values()
        )
    return table


def _notes(parent: Run, best: Sequence[TrialResult], by_id: Runs) -> Iterator[str]:
    """Lines that say how far the best trials' objective is to be trusted."""
    ids = [trial.trial_id for trial in best]
    if alike := [name for name in ids if name in by_id and has_collapsed(by_id[name])]:
        yield f"samples have collapsed ({SAMPLE_DIVERSITY} below {COLLAPSED}) in {', '.join(alike)}"
    known = parent.data.metrics
    if UNTRAINED_BN_ERROR in known:
        yield (
            f"without training, the same SVMs: {known[RAW_PIXEL_ERROR]:.4f} on raw pixels, "
            f"{known[UNTRAINED_ERROR]:.4f} on an untrained encoder, "
            f"{known[UNTRAINED_BN_ERROR]:.4f} once its batch norm has seen the data\n"
        )


def _pareto(trials: Sequence[TrialResult], by_id: Runs, parent: Run) -> Table | str | None:
    """The trials that are best in the objective and the quality of samples together."""
    objective, maximize = runs.objective_of(parent), runs.direction_of(parent) == "maximize"
    points, less = {}, -1 if maximize else 1
    for trial in trials:
        run = by_id.get(trial.trial_id)
        distance = run.data.metrics.get(SAMPLE_DISTANCE) if run else None
        if trial.value is not None and distance is not None:
            points[trial.trial_id] = (less * trial.value, distance)
    if objective == SAMPLE_DISTANCE or len(points) < 2:
        return None
    names = front(points)
    if len(names) == 1:
        end = "highest" if maximize else "lowest"
        return f"Trial {names[0]} has the {end} {objective} and the lowest {SAMPLE_DISTANCE}.\n"
    table = Table(
        title=f"Best in {objective} and {SAMPLE_DISTANCE} together (Pareto front)",
        title_justify="left",
    )
    for heading in ("trial", objective, SAMPLE_DISTANCE):
        table.add_column(heading, justify="right")
    for name in names:
        value, distance = points[name]
        table.add_row(name, f"{less * value:.4f}", f"{distance:.2f}")
    return table


def control_of(trials: Sequence[FrozenTrial]) -> int | None:
    """Number of the trial at the paper's own point, if the sweep has one."""
    return next((t.number for t in trials if t.user_attrs.get(CONTROL)), None)


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
    if interval := interval_text(expected):
        line += f" (95 % interval {interval})"
    paper = next((c for c in others if c.number == control), None)
    rivals = [(paper, "the paper's point")] if paper else []
    second = next((c for c in others if c.number != control), None)
    rivals += [(second, f"the second, {_id(second)}")] if second else []
    for rival, name in rivals:
        assert rival is not None
        line += f"; better than {name}, with probability {expected.beats(known[rival.number]):.0%}"
    return line + ".\n"


def _confirmation(
    found: Sequence[Confirmed],
    known: Mapping[int, Estimate],
    by_id: Runs,
    trials: Sequence[FrozenTrial],
) -> Table:
    """Objective over fresh seeds, and expected; what cannot be told from the best is a tie."""
    table = Table(
        title="Confirmation, on fresh seeds",
        caption="expected: the mean over other seeds, from all runs and the mean of all trials",
        title_justify="left",
        caption_justify="left",
    )
    for heading in ("configuration of", "mean", "std", "seeds", "collapsed", "expected"):
        table.add_column(heading, justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("against the first")
    control = control_of(trials)
    again: dict[int, list[str]] = defaultdict(list)
    for trial in trials:
        if CONFIRMS in trial.user_attrs:
            again[trial.user_attrs[CONFIRMS]].append(trial_id(trial.number))
    for one in found:
        collapsed = sum(name in by_id and has_collapsed(by_id[name]) for name in again[one.number])
        expected = known[one.number]
        behind = known[found[0].number].beats(expected)
        verdict = "worse" if behind >= SURE else "tie: cannot be told apart"
        table.add_row(
            _id(one) + (" (the paper's)" if one.number == control else ""),
            f"{one.mean:.4f}",
            f"{one.std:.4f}" if len(one.values) > 1 else MISSING,
            f"{len(one.values)}" + (f", {one.diverged} diverged" if one.diverged else ""),
            f"{collapsed}",
            f"{expected.mean:.4f}",
            interval_text(expected) or MISSING,
            "" if one is found[0] else verdict,
        )
    return table


def _id(one: Confirmed) -> str:
    return trial_id(one.number)


def _ends(trials: Sequence[TrialResult]) -> Table:
    groups: dict[str, list[TrialResult]] = defaultdict(list)
    for trial in trials:
        groups[trial.ending.state.value if trial.ending else "not ended"].append(trial)
    table = Table(title="How trials ended", title_justify="left")
    for heading in ("end", "trials", "epochs", "why (the first three)"):
        table.add_column(heading)
    for end, group in sorted(groups.items()):
        group.sort(key=lambda trial: trial.trial_id)
        epochs = [max(trial.values, default=0) for trial in group]
        why = [f"{t.trial_id}: {t.ending.reason if t.ending else ''}" for t in group[:3]]
        span = f"{min(epochs)}–{max(epochs)}" if min(epochs) < max(epochs) else f"{epochs[0]}"
        table.add_row(end, str(len(group)), span, "\n".join(why))
    return table


def _importance(trials: Sequence[FrozenTrial]) -> Table | str:
    """Of all trials with values: a stopped one counts with its last, a diverged one as worst."""
    from sweeps.engine.importance import MIN_TRIALS, importance

    with_value = valued(trials)
    found = importance(with_value)
    if not found.shares:
        return f"Importance: {len(with_value)} trials are too few to tell; it takes {MIN_TRIALS}.\n"
    if not found.significant:
        first = found.shares[0]
        return (
            f"Importance: none can be told from chance in {found.trials} trials. The largest "
            f"share, {first.value:.0%} of {first.name}, is below the {found.chance:.0%} that "
            f"shuffled values reach; it would take some {found.trials_needed} trials.\n"
        )
    table = Table(
        title=f"Importance, from {len(with_value)} trials",
        caption=f"Shares up to {found.chance:.0%} are chance, and left out.",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("hyperparameter")
    table.add_column("share", justify="right")
    table.add_column("90 % interval", justify="right")
    table.add_column("")
    for share in found.significant:
        interval = f"{share.low:.0%} to {share.high:.0%}"
        table.add_row(
            share.name, f"{share.value:.0%}", interval, "█" * max(1, round(40 * share.value))
        )
    return table


def _cost(by_id: Runs) -> Table:
    table = Table(title="Time and cost", title_justify="left")
    for heading in ("trials", "epochs", "training s", "evaluation s", "s/trial", "core-hours"):
        table.add_column(heading, justify="right")
    metrics = [run.data.metrics for run in by_id.values()]
    train = sum(m.get(TOTAL_TRAIN_SECONDS, 0.0) for m in metrics)
    evaluation = sum(m.get(TOTAL_EVAL_SECONDS, 0.0) for m in metrics)
    cores = sum(m.get(TOTAL_CORE_SECONDS, 0.0) for m in metrics)
    table.add_row(
        str(len(by_id)),
        str(sum(int(m.get(EPOCH, 0)) for m in metrics)),
        f"{train:.0f}",
        f"{evaluation:.0f}",
        f"{(train + evaluation) / max(1, len(by_id)):.1f}",
        f"{cores / 3600:.2f}",
    )
    return table
