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
from sweeps.engine.confirmation import CONFIRMS, is_new
from sweeps.engine.endings import END_STATE
from sweeps.engine.formatting import format_line
from sweeps.engine.objective import Objective
from sweeps.engine.options import Options
from sweeps.engine.progress import Progress
from sweeps.engine.study import CONFIG, Study, confirms_of, trial_id


@dataclass
class Running:
    """A trial that runs.

    Attributes:
        epoch: last one that ended.
        since: when it ended, or the trial started, on the monotonic clock.
        value: the objective there; None before it has one.
        confirms: id of the trial that it confirms.
        told: what else its last result says, the most telling first.
    """

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
        self._ended: Counter[int] = Counter()  # trials by their last epoch
        self._stopped: Counter[int] = Counter()  # those of them that ended before their full budget
        self._again = 0  # ended trials that confirm others
        self._seconds, self._epochs = 0.0, 0  # time and epochs of this driver's trials
        for trial in study.trials():
            if trial.state.is_finished():
                self._count(trial)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its arguments; a resume creates this object anew

    # Tune's notices

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        frozen = self._study.trial(int(trial.trial_id))
        values = frozen.intermediate_values
        epoch = max(values, default=0)
        self._running[trial.trial_id] = Running(
            epoch, time.monotonic(), values.get(epoch), confirms_of(frozen)
        )

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict, **_: Any
    ) -> None:
        run = self._running.get(trial.trial_id)
        if run is None or EPOCH not in result or END_STATE in result:
            return
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
        if self._running.pop(trial.trial_id, None):
            self._count(self._study.trial(int(trial.trial_id)))

    on_trial_error = on_trial_complete

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        self._running.pop(trial.trial_id, None)

    def _count(self, trial: FrozenTrial) -> None:
        if CONFIRMS in trial.user_attrs:
            self._again += 1
        elif is_new(trial):
            last = max(trial.intermediate_values, default=1)  # diverged at once
            self._ended[last] += 1
            self._stopped[last] += trial.state != TrialState.COMPLETE

    # Its lines

    def lines(self, width: int, height: int) -> list[Text]:
        """The view, in no more than a terminal's columns, and half of its rows.

        A thread calls it, while Tune's callbacks run in another.
        """
        running = sorted(self._running.copy().items())
        expected = epochs_left(
            self._options.epochs,
            self._ended,
            self._stopped,
            [run.epoch for _, run in running if run.confirms is None],
        )
        left = [
            float(self._options.epochs - run.epoch) if run.confirms else expected[run.epoch]
            for _, run in running
        ]
        to_come = self._to_come(running, expected[0])
        shown = [
            self._counts(width, len(running)),
            self._time(width, running, left, to_come),
            *self._best(width, running),
        ]
        room = max(1, height // 2 - len(shown))
        shown += [self._row(width, name, run) for name, run in running[:room]]
        if len(running) > room:
            shown.append(fit(width, Text(f"… and {len(running) - room} more running", "dim")))
        return shown

    def _counts(self, width: int, running: int) -> Text:
        ended = f"{self._ended.total()} of {self._options.num_trials} trials ended"
        pieces = [Text(self._options.name, "bold"), Text(ended), Text(f"{running} running")]
        if self._again:
            pieces.append(Text(f"{self._again} repetition{'s' * (self._again > 1)} ended"))
        return fit(width, *pieces)

    def _time(
        self, width: int, running: list[tuple[str, Running]], left: list[float], to_come: float
    ) -> Text:
        trained = sum(epoch * count for epoch, count in self._ended.copy().items())
        trained += self._again * self._options.epochs + sum(run.epoch for _, run in running)
        done = trained / max(1.0, trained + sum(left) + to_come)
        told = "time left: known after the first epoch"
        if self._epochs:
            now, each = time.monotonic(), self._seconds / self._epochs
            since = [now - run.since for _, run in running]
            seconds = [max(0.0, n * each - s) for n, s in zip(left, since, strict=True)]
            total = (sum(seconds) + to_come * each) / self._slots
            told = f"about {duration(max([total, *seconds]))} left"  # the last runs alone
        so_far = f"{duration(time.monotonic() - self._began)} so far"
        pieces = [bar(width, done), Text(f"{done:.0%}"), Text(told, "bold"), Text(so_far, "dim")]
        return fit(width, *pieces)

    def _to_come(self, running: list[tuple[str, Running]], expected: float) -> float:
        """Epochs of the trials that have not started."""
        options = self._options
        repeating = sum(run.confirms is not None for _, run in running)
        begun = self._ended.total() + len(running) - repeating
        made, due = self._again + repeating, begun // options.race if options.race else 0
        later = options.num_trials // options.race - due if options.race else 0
        # The race leaves out repetitions once the most promising have had theirs.
        again = max(0, later) * (min(1.0, made / due) if due else 1.0)
        if options.confirm:
            again += max(0, options.confirm_seeds * (options.confirm + 1) - max(0, made - due))
        return max(0, options.num_trials - begun) * expected + again * options.epochs

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
