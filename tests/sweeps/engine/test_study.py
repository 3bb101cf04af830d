"""The study as a sweep's memory: idempotent, repaired after a kill, repeatable; and "best"."""

import itertools
import math
import resource
from collections import Counter

import pytest
from optuna.trial import TrialState

from ali.errors import UserError
from sweeps.engine.endings import Ending, EndState, ending_of
from sweeps.engine.study import Study, best_trials, read_study

pytestmark = pytest.mark.versions

COMPLETED, STOPPED = Ending(EndState.COMPLETED, "done"), Ending(EndState.STOPPED_EARLY, "cut")
DIVERGED = Ending(EndState.DIVERGED, "nan")


def again(study, tmp_path):
    """The study as the next driver opens it."""
    return Study(tmp_path / "journal", "s", seed=1, startup_trials=3)


def test_told_twice_is_told_once(study, tmp_path, point):
    # The bare stack: the second tell raises UpdateFinishedTrialError and ends the experiment.
    trial = study.ask(point)
    study.report(trial.number, 1, 0.5)
    study.report(trial.number, 1, 0.4)
    study.tell(trial.number, COMPLETED, 0.3)
    reopened = again(study, tmp_path)
    reopened.tell(trial.number, STOPPED, 0.9)
    reopened.report(trial.number, 2, 0.1)
    (found,) = reopened.trials()
    assert (found.state, found.value) == (TrialState.COMPLETE, 0.3)
    assert found.intermediate_values == {1: 0.5}
    assert ending_of(found) == COMPLETED


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
@pytest.mark.parametrize("epochs", [0, 2])
def test_a_diverged_trial_is_told_pruned(study, value, epochs, point):
    trial = study.ask(point)
    for epoch in range(1, epochs + 1):
        study.report(trial.number, epoch, 0.5)
    study.tell(trial.number, DIVERGED, value)
    assert study.trials()[0].state == TrialState.PRUNED
    assert best_trials(study.trials()) == []


def test_the_search_keeps_away_from_where_trials_diverge(tmp_path, point):
    """Of points that are told FAIL, TPE hears nothing, and draws the same again."""
    asked = Counter()
    for seed, ending in itertools.product(range(4), (DIVERGED, Ending(EndState.FAILED, "lost"))):
        study = Study(tmp_path / f"{seed}-{ending.state.value}", "s", seed, startup_trials=15)
        for number in range(45):
            trial = study.ask(point)
            bad = trial.params["lr_d"] > 2e-4  # half of the points
            study.tell(trial.number, ending if bad else COMPLETED, None if bad else 0.5)
            asked[ending.state] += bad and number >= 15
    assert asked[EndState.DIVERGED] < asked[EndState.FAILED] / 2, asked


def test_a_non_finite_value_is_not_recorded(study, point):
    trial = study.ask(point)
    study.report(trial.number, 1, math.nan)
    assert study.trials()[0].intermediate_values == {}


def test_a_trial_stopped_early_is_pruned_with_its_values(study, point):
    trial = study.ask(point)
    study.report(trial.number, 1, 0.8)
    study.tell(trial.number, STOPPED, 0.8)
    (found,) = study.trials()
    assert found.state == TrialState.PRUNED
    assert found.intermediate_values == {1: 0.8}


def test_half_a_line_and_a_lock_of_a_killed_driver_are_removed(study, tmp_path, point):
    study.ask(point)
    journal = tmp_path / "journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "worker_id": "ab')
    (tmp_path / "journal.lock").symlink_to(journal)
    reopened = again(study, tmp_path)
    reopened.ask(point)
    assert len(again(study, tmp_path).trials()) == 2


def test_a_line_that_does_not_fit_on_the_disk_is_taken_back(study, tmp_path, point):
    journal = tmp_path / "journal"
    study.ask(point)
    before = journal.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))  # half a line
    try:
        with pytest.raises(UserError, match=r"cannot write .*journal: .*; free space, then resume"):
            study.ask(point)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert journal.read_bytes() == before
    study.ask(point)
    assert len(again(study, tmp_path).trials()) == len(read_study(journal, "s").trials) == 2


def test_a_point_depends_on_its_number_and_what_was_told_not_on_restarts(study, tmp_path, point):
    def search(folder, restarts):
        folder.mkdir()
        found = Study(folder / "journal", "s", seed=1, startup_trials=3)
        for _ in range(8):
            if restarts:
                found = Study(folder / "journal", "s", seed=1, startup_trials=3)
            trial = found.ask(point)
            found.tell(trial.number, COMPLETED, abs(trial.params["dropout_x"] - 0.1))
        return [t.params for t in found.trials()]

    assert search(tmp_path / "a", False) == search(tmp_path / "b", True)


@pytest.mark.parametrize("told", [0, 5])
def test_a_draw_cut_short_anywhere_comes_to_the_same_point(study, tmp_path, point, told):
    """By chance (of 3 trials at the start) and by TPE."""
    for _ in range(told):
        trial = study.ask(point)
        study.tell(trial.number, COMPLETED, abs(trial.params["dropout_x"] - 0.1))
    journal = tmp_path / "journal"
    before = len(journal.read_bytes().splitlines())
    asked = study.ask(point)
    lines = journal.read_bytes().splitlines(keepends=True)
    for cut in range(before + 1, len(lines)):
        journal.write_bytes(b"".join(lines[:cut]))
        reopened = again(study, tmp_path)
        finished = reopened.complete_ask(reopened.trials()[-1], point)
        assert (finished.params, finished.user_attrs) == (asked.params, asked.user_attrs)
        assert again(study, tmp_path).trial(told).params == asked.params


def test_a_trial_by_its_number_is_the_one_in_the_list(study, point):
    for _ in range(3):
        study.ask(point)
    study.report(1, 1, 0.5)
    assert [study.trial(number) for number in range(3)] == study.trials()


def test_looking_at_a_sweep_leaves_its_journal_and_its_drivers_lock_alone(study, tmp_path, point):
    study.ask(point)
    journal, lock = tmp_path / "journal", tmp_path / "journal.lock"
    half = journal.read_bytes() + b'{"op_code": 4, "worker_id": "ab'
    journal.write_bytes(half)
    lock.symlink_to(journal)
    assert len(read_study(journal, "s").trials) == 1
    assert journal.read_bytes() == half and lock.is_symlink()


def test_best_is_the_lowest_value_at_full_budget_and_of_equals_the_first(study, point):
    values = [0.4, 0.2, 0.2, None, 0.1]
    endings = [COMPLETED, COMPLETED, COMPLETED, DIVERGED, STOPPED]
    for value, ending in zip(values, endings, strict=True):
        trial = study.ask(point)
        study.tell(trial.number, ending, value)
    assert [trial.number for trial in best_trials(study.trials())] == [1, 2, 0]


def test_a_journal_of_the_version_before_is_read(study, point):
    """The names in the journal are a format: a sweep that was begun with them can be resumed."""
    trial = study.ask(point)
    study.tell(trial.number, STOPPED, 0.5)
    (found,) = study.trials()
    assert found.user_attrs["end_state"] == "stopped early"
    assert found.user_attrs["end_reason"] == "cut" and "lr_d" in found.user_attrs["config"]
