"""What the live view says: time left, the best so far, and what fits into a narrow terminal."""

import math
from collections import Counter
from types import SimpleNamespace

import pytest

from sweeps.engine import overview as module
from sweeps.engine.endings import LOST, Ending, EndState, lost_tries
from sweeps.engine.objective import Objective
from sweeps.engine.options import Options
from sweeps.engine.overview import Overview, bar, duration, epochs_left, fit
from sweeps.engine.scheduler import HISTORY
from sweeps.engine.study import best_trials


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


class Sweep:
    """Four trials of ten epochs in two slots, whose events the test makes."""

    def __init__(self, study, point, clock, **options):
        self.study, self.point, self.clock = study, point, clock
        self.progress = SimpleNamespace(best=[])
        made = Options(name="s", num_trials=4, epochs=10, **options)
        self.overview = Overview(made, study, self.progress, Objective("val_error"), 2)

    def start(self, confirms=None):
        if confirms is not None:
            self.study.enqueue_again(confirms)
        trial = SimpleNamespace(trial_id=f"{self.study.ask(self.point).number:05d}")
        self.overview.on_trial_start(0, [], trial)
        return trial

    def lose(self, trial):
        """Tune gives it up since it has lost too many workers."""
        self.study.tell(int(trial.trial_id), LOST, None)
        self.overview.on_trial_error(0, [], trial)

    def resumed(self, **options):
        """The sweep under a new driver, which tries lost trials again."""
        for tries in lost_tries(self.study.trials()):
            self.study.retry(tries[-1].number)
        return Sweep(self.study, self.point, self.clock, **options)

    def result(self, trial, epoch, value, history=()):
        for past, known in (*history, (epoch, value)):
            self.study.report(int(trial.trial_id), past, known)
        result = {"epoch": epoch, "val_error": value, "d_loss": 1.0, "images_per_second": 50.0}
        if history:
            result[HISTORY] = history
        self.overview.on_trial_result(0, [], trial, result)

    def end(self, trial, state, value):
        self.study.tell(int(trial.trial_id), Ending(state, ""), value)
        self.progress.best = best_trials(self.study.trials())
        self.overview.on_trial_complete(0, [], trial)

    def lines(self, width=100, height=24):
        return [line.plain.rstrip() for line in self.overview.lines(width, height)]


@pytest.fixture
def sweep(study, point, clock):
    return Sweep(study, point, clock)


def test_the_epochs_left_follow_from_where_trials_were_stopped():
    assert epochs_left(4, Counter(), Counter(), []) == [4, 3, 2, 1, 0], "nobody yet"
    assert epochs_left(4, Counter({4: 2}), Counter(), [1, 2]) == [4, 3, 2, 1, 0]
    half = epochs_left(4, Counter({1: 1, 4: 1}), Counter({1: 1}), [])
    assert half == [2.5, 3, 2, 1, 0], "one in two goes on after the first epoch"
    with_running = epochs_left(4, Counter({1: 1, 4: 1}), Counter({1: 1}), [1, 2])
    assert with_running[0] == 1 + 0.75 * 3, "those that still run have got past it, too"


def test_the_time_left_is_of_all_trials_to_come_in_all_slots(sweep, clock):
    first, second = sweep.start(), sweep.start()
    assert "time left: known after the first epoch" in sweep.lines()[1]
    clock[0] = 60.0
    for trial in (first, second):
        sweep.result(trial, 1, 0.5)
    assert "about 19 min left" in sweep.lines()[1], "4 trials of 10 minutes, 2 at a time"
    clock[0] = 90.0
    assert "about 18 min left" in sweep.lines()[1], "it goes on between two results"
    clock[0] = 600.0
    for trial in (first, second):
        sweep.result(trial, 10, 0.4)
        sweep.end(trial, EndState.COMPLETED, 0.4)
    third, fourth = sweep.start(), sweep.start()
    clock[0] = 660.0
    for trial in (third, fourth):
        sweep.result(trial, 1, 0.5)
    sweep.end(third, EndState.DIVERGED, None)
    assert "about 9 min left" in sweep.lines()[1], "the last one runs alone"
    assert "2 of 4" not in sweep.lines()[0] and "3 of 4 trials ended" in sweep.lines()[0]


def test_what_is_trained_again_counts_too(study, point, clock):
    sweep = Sweep(study, point, clock, race=2, confirm=1, confirm_seeds=2)
    first = sweep.start()
    clock[0] = 60.0
    sweep.result(first, 1, 0.5)
    # 4 new trials and up to 2 + 2·2 repetitions of 10 minutes, one of them gone
    assert "about 50 min left" in sweep.lines()[1]
    clock[0] = 600.0
    sweep.result(first, 10, 0.4)
    sweep.end(first, EndState.COMPLETED, 0.4)
    again = sweep.start(confirms=0)
    assert f"{again.trial_id}  " in sweep.lines()[-1] and "confirms 00000" in sweep.lines()[-1]


def test_the_best_so_far_may_still_be_running(sweep):
    first, second = sweep.start(), sweep.start()
    sweep.result(first, 10, 0.4)
    sweep.end(first, EndState.COMPLETED, 0.4)
    assert sweep.lines()[2].startswith(" best so far  00000  val_error 0.4000")
    sweep.result(second, 3, 0.3)
    best, completed = sweep.lines()[2:4]
    assert best == " best so far  00001  val_error 0.3000  after epoch 3/10, running"
    assert completed.startswith(" completed    00000  val_error 0.4000")


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_no_line_is_wider_than_the_terminal(sweep, width):
    for _ in range(3):
        sweep.result(sweep.start(), 3, 0.5)
    lines = sweep.lines(width, 10)
    assert max(map(len, lines)) < width and len(lines) <= 6
    assert lines[-1] == fit(width, module.Text("… and 1 more running")).plain
    if width >= 40:
        assert lines[3].split()[:4] == ["00000", bar(width, 0.3).plain, "3/10", "0.5000"]


def test_a_resume_starts_from_what_the_study_has(sweep, study, point, clock):
    first = sweep.start()
    sweep.result(first, 10, 0.4)
    sweep.end(first, EndState.COMPLETED, 0.4)
    left = sweep.start()
    sweep.result(left, 4, 0.5)
    resumed = Sweep(study, point, clock)
    assert "1 of 4 trials ended" in resumed.lines()[0]
    resumed.overview.on_trial_start(0, [], left)
    assert " 4/10  0.5000" in resumed.lines()[-1]


def test_a_trial_that_is_tried_again_has_trained_the_epochs_before(sweep, clock):
    lost = sweep.start()
    for epoch in range(1, 9):
        sweep.result(lost, epoch, 0.4)
    sweep.lose(lost)
    resumed = sweep.resumed()
    assert " 20% " in resumed.lines()[1], "8 of 40 epochs, and it waits"
    again = resumed.start()
    assert again.trial_id == "00001" and " 8/10  0.4000" in resumed.lines()[-1]
    assert "1 of 4 trials ended" in resumed.lines()[0] and " 20% " in resumed.lines()[1]
    clock[0] = 60.0
    resumed.result(again, 9, 0.4, [(epoch, 0.4) for epoch in range(1, 9)])
    # 1 epoch of a minute is left, and 3 trials of 10 of them, 2 at a time
    assert "about 16 min left" in resumed.lines()[1] and " 22% " in resumed.lines()[1]
    clock[0] = 120.0
    resumed.result(again, 10, 0.4)
    resumed.end(again, EndState.COMPLETED, 0.4)
    assert "1 of 4 trials ended" in resumed.lines()[0] and " 25% " in resumed.lines()[1]


def test_an_older_checkpoint_gives_back_the_epochs_since(sweep, clock):
    first = sweep.start()
    sweep.result(first, 6, 0.4)
    sweep.overview.on_trial_recover(0, [], first)
    clock[0] = 120.0
    assert "0 running" in sweep.lines()[0] and " 15% " in sweep.lines()[1], "6 of 40 epochs"
    sweep.overview.on_trial_start(0, [], first)
    clock[0] = 180.0
    sweep.result(first, 4, 0.4, [(3, 0.4)])
    assert (sweep.overview._seconds, sweep.overview._epochs) == (60.0, 7), "one of a minute"
    assert " 4/10  0.4000" in sweep.lines()[-1]


def test_a_trial_that_is_stopped_while_it_waits_for_a_worker_has_ended(sweep):
    first = sweep.start()
    sweep.result(first, 6, 0.4)
    sweep.overview.on_trial_recover(0, [], first)
    sweep.end(first, EndState.STOPPED_EARLY, None)
    assert "1 of 4 trials ended" in sweep.lines()[0]


def test_a_repetition_that_is_tried_again_is_one(sweep):
    first = sweep.start()
    sweep.result(first, 10, 0.4)
    sweep.end(first, EndState.COMPLETED, 0.4)
    again = sweep.start(confirms=0)
    sweep.result(again, 5, 0.4)
    sweep.lose(again)
    resumed = sweep.resumed(race=0, confirm=1, confirm_seeds=2)
    assert " 19% " in resumed.lines()[1], "15 of 80 epochs, 40 of repetitions"
    retry = resumed.start()
    assert " 19% " in resumed.lines()[1] and "confirms 00000" in resumed.lines()[-1]
    resumed.result(retry, 10, 0.4, [(5, 0.4)])
    resumed.end(retry, EndState.COMPLETED, 0.4)
    assert "1 repetition ended" in resumed.lines()[0] and " 25% " in resumed.lines()[1]


def test_a_duration_is_told_in_two_units_at_most():
    told = [duration(s) for s in (0.4, 59, 61, 3599, 3700, 86400, 200_000)]
    assert told == ["0 s", "59 s", "1 min", "1 h 00 min", "1 h 02 min", "1 d 0 h", "2 d 7 h"]


def test_a_running_trial_without_a_value_is_not_the_best(sweep):
    sweep.result(sweep.start(), 1, math.nan)
    sweep.result(sweep.start(), 1, 0.5)
    (best,) = [line for line in sweep.lines() if "best so far" in line]
    assert "00001" in best and "0.5000" in best
