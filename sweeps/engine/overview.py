"""What a sweep's view shows: the best so far, the running trials, and the time left."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune.experiment import Trial
from rich.text import Text

from ali.metrics import EPOCH, IMAGES_PER_SECOND, LOSSES
from sweeps.engine.confirmation import CONFIRMS
from sweeps.engine.endings import END_STATE, RETRIES, first_try
from sweeps.engine.formatting import format_line
from sweeps.engine.objective import Objective
from sweeps.engine.options import Options
from sweeps.engine.progress import Progress
from sweeps.engine.scheduler import HISTORY
from sweeps.engine.study import CONFIG, Study, confirms_of, trial_id


@dataclass
class Running:
    """A trial that runs, or waits to go on.

    Attributes:
        first: number of its first try.
        epoch: last one that ended, in any try.
        since: when it ended, or the trial started, on the monotonic clock.
        value: the objective there; None before it has one.
        confirms: id of the trial that it confirms.
        told: what else its last result says, the most telling first.
    """

    first: int
    epoch: int
    since: float
    value: float | None = None
    confirms: str | None = None
    told: tuple[str, ...] = ()


class Overview(tune.Callback):
    """Follows a sweep's trials, and makes the lines of its view."""

    def __init__(
        self, options: Options, study: Study, progress: Progress, objective: Objective, slots: int
    ) -> None:
        self._options, self._study, self._progress = options, study, progress
        self._objective, self._slots = objective.name, slots
        self._sign = -1.0 if objective.maximize else 1.0  # less is better
        self._began = time.monotonic()
        self._running: dict[str, Running] = {}
        self._waiting: dict[str, Running] = {}  # trials that have begun, and wait for a worker
        # By first try, since a trial that lost its workers is tried again after a resume
        self._ended: dict[int, tuple[int, bool]] = {}  # last epoch, whether of the full budget
        self._again: set[int] = set()  # ended trials that confirm others
        self._seconds, self._epochs = 0.0, 0  # time and epochs of this driver's trials
        for trial in study.trials():
            if trial.state.is_finished():
                self._count(trial)
            elif trial.state != TrialState.WAITING or RETRIES in trial.user_attrs:
                self._waiting[trial_id(trial.number)] = self._begun(trial)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its arguments; a resume creates this object anew

    # Tune's notices

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        self._running[trial.trial_id] = self._begun(self._study.trial(int(trial.trial_id)))
        self._waiting.pop(trial.trial_id, None)

    def _begun(self, trial: FrozenTrial) -> Running:
        tries, first = [trial], first_try(trial)
        if RETRIES in trial.user_attrs:
            tries = [t for t in self._study.trials() if first_try(t) == first]
        values = {epoch: v for one in tries for epoch, v in one.intermediate_values.items()}
        epoch = max(values, default=0)
        confirms = confirms_of(trial)
        return Running(first, epoch, time.monotonic(), values.get(epoch), confirms)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict, **_: Any
    ) -> None:
        run = self._running.get(trial.trial_id)
        if run is None or EPOCH not in result or END_STATE in result:
            return
        if past := result.get(HISTORY):  # it goes on from a checkpoint, which may be an older one
            run.epoch = max(int(epoch) for epoch, _ in past)
        now, trained = time.monotonic(), int(result[EPOCH]) - run.epoch
        if trained > 0:
            self._seconds += now - run.since
            self._epochs += trained
        run.epoch, run.since = int(result[EPOCH]), now
        run.value = result.get(self._objective, run.value)
        told = {IMAGES_PER_SECOND: "{:.0f} images/s"}
        told |= {name: label + " {:.3f}" for name, label in LOSSES.items()}
        run.told = tuple(text.format(result[key]) for key, text in told.items() if key in result)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **_: Any
    ) -> None:
        self._count(self._study.trial(int(trial.trial_id)))
        for begun in (self._running, self._waiting):
            begun.pop(trial.trial_id, None)

    on_trial_error = on_trial_complete

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        if run := self._running.get(trial.trial_id):
            self._waiting[trial.trial_id] = run
            del self._running[trial.trial_id]

    def _count(self, trial: FrozenTrial) -> None:
        first = first_try(trial)
        if CONFIRMS in trial.user_attrs:
            self._again.add(first)
        else:
            last = max(trial.intermediate_values, default=1)  # diverged at once
            self._ended[first] = last, trial.state == TrialState.COMPLETE

    # Its lines

    def lines(self, width: int, height: int) -> list[Text]:
        """The view, in no more than a terminal's columns, and half of its rows.

        A thread calls it, while Tune's callbacks run in another.
        """
        running = sorted(self._running.copy().items())
        shown = [
            self._counts(width, len(running)),
            self._time(width, [run for _, run in running]),
            *self._best(width, running),
        ]
        room = max(1, height // 2 - len(shown))
        shown += [self._row(width, name, run) for name, run in running[:room]]
        if len(running) > room:
            shown.append(fit(width, Text(f"… and {len(running) - room} more running", "dim")))
        return shown

    def _counts(self, width: int, running: int) -> Text:
        ended = f"{len(self._ended)} of {self._options.num_trials} trials ended"
        pieces = [Text(self._options.name, "bold"), Text(ended), Text(f"{running} running")]
        if again := len(self._again):
            pieces.append(Text(f"{again} repetition{'s' * (again > 1)} ended"))
        return fit(width, *pieces)

    def _time(self, width: int, running: list[Running]) -> Text:
        begun = [*running, *self._waiting.copy().values()]
        tried_again, epochs = {run.first for run in begun}, self._options.epochs
        ended = [end for n, end in self._ended.copy().items() if n not in tried_again]
        again = len(self._again - tried_again)
        expected = epochs_left(
            epochs,
            Counter(epoch for epoch, _ in ended),
            Counter(epoch for epoch, full in ended if not full),
            [run.epoch for run in begun if run.confirms is None],
        )
        all_ = [float(epochs - r.epoch) if r.confirms else expected[r.epoch] for r in begun]
        left, waiting = all_[: len(running)], all_[len(running) :]
        to_come = sum(waiting) + self._to_come(begun, len(ended), again, expected[0])
        trained = sum(epoch for epoch, _ in ended) + sum(run.epoch for run in begun)
        trained += again * epochs
        done = trained / max(1.0, trained + sum(left) + to_come)
        told = "time left: known after the first epoch"
        if self._epochs:
            now, each = time.monotonic(), self._seconds / self._epochs
            since = [now - run.since for run in running]
            seconds = [max(0.0, n * each - s) for n, s in zip(left, since, strict=True)]
            total = (sum(seconds) + to_come * each) / self._slots
            told = f"about {duration(max([total, *seconds]))} left"  # the last runs alone
        so_far = f"{duration(time.monotonic() - self._began)} so far"
        pieces = [bar(width, done), Text(f"{done:.0%}"), Text(told, "bold"), Text(so_far, "dim")]
        return fit(width, *pieces)

    def _to_come(self, begun: list[Running], ended: int, again: int, expected: float) -> float:
        """Epochs of the trials that have not begun. `ended`, `again`: new ones and repetitions
        that ended; `expected`: epochs of a new one."""
        options = self._options
        repeating = sum(run.confirms is not None for run in begun)
        new = ended + len(begun) - repeating
        made, due = again + repeating, new // options.race if options.race else 0
        later = options.num_trials // options.race - due if options.race else 0
        # The race leaves out repetitions once the most promising have had theirs.
        more = max(0, later) * (min(1.0, made / due) if due else 1.0)
        if options.confirm:
            more += max(0, options.confirm_seeds * (options.confirm + 1) - max(0, made - due))
        return max(0, options.num_trials - new) * expected + more * options.epochs

    def _best(self, width: int, running: list[tuple[str, Running]]) -> list[Text]:
        """The best completed trial, and before it a running one whose objective is better."""
        rows: list[tuple[str, str, float | None, str]] = []
        label = "best so far"
        completed = self._progress.best[:1]
        limit = completed[0].value if completed else None
        less = self._sign
        known = [(name, run, run.value) for name, run in running if run.value is not None]
        values = [(less * value, name, run) for name, run, value in known if math.isfinite(value)]
        best, name, run = min(values, key=lambda found: found[:2], default=(math.inf, "", None))
        if run and (limit is None or best < less * limit):
            where = f"after epoch {run.epoch}/{self._options.epochs}, running"
            rows.append((label, name, run.value, where))
            label = "completed"
        for trial in completed:
            told = format_line(trial.user_attrs.get(CONFIG, {}))
            rows.append((label, trial_id(trial.number), trial.value, told))
        return [
            fit(
                width, Text(f"{label:11}"), Text(name),
                Text(f"{self._objective} {value:.4f}", "bold green"), Text(told, "dim"),
            )
            for label, name, value, told in rows
        ]  # fmt: skip

    def _row(self, width: int, name: str, run: Running) -> Text:
        epochs = self._options.epochs
        value = "–" if run.value is None else f"{run.value:.4f}"
        done = f"{run.epoch:{len(str(epochs))}}/{epochs}"
        told = [f"confirms {run.confirms}"] if run.confirms else []
        more = [Text(text, "dim") for text in (*told, *run.told)]
        share = bar(width, run.epoch / epochs)
        return fit(width, Text(name), share, Text(done), Text(value, "green"), *more)


def epochs_left(
    epochs: int, ended: Counter[int], stopped: Counter[int], running: Iterable[int]
) -> list[float]:
    """How many more epochs to expect of a trial that has trained 0, 1, …, `epochs` of them.

    Uses the share of trials stopped after each epoch among those that reached it: the Kaplan–Meier
    estimate, in which running trials count up to their last epoch.

    Args:
        ended: trials by their last epoch.
        stopped: those of them that ended before their full budget.
        running: the epochs of the others.
    """
    last = Counter(ended)
    last.update(running)
    left, there = [0.0] * (epochs + 1), 0
    for epoch in range(epochs, 0, -1):
        there += last[epoch]
        stops = stopped[epoch] / there if there else 0.0
        left[epoch - 1] = 1 + (1 - stops) * left[epoch]
    return left


def fit(width: int, *pieces: Text) -> Text:
    """As many of the pieces, from the first, as fit side by side in a line."""
    line = Text(" ", no_wrap=True)
    for i, piece in enumerate(pieces):
        if i and line.cell_len + piece.cell_len + 3 > width:
            break
        line.append("  " * bool(i)).append_text(piece)
    line.truncate(max(1, width - 1), overflow="ellipsis")
    return line


def bar(width: int, share: float) -> Text:
    """A bar in a line of `width` columns."""
    size = 12 if width < 60 else 24
    done = int(size * min(1.0, share))
    return Text.assemble(("━" * done, "cyan"), ("·" * (size - done), "dim"))


def duration(seconds: float) -> str:
    """In the two largest units that tell something."""
    minutes = round(seconds / 60)
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"
