"""Trials that hang: silence is counted on the driver's own clock."""

import pytest

from sweeps.engine import ray_compat, watchdog
from sweeps.engine.watchdog import HangWatchdog


class Trial:
    def __init__(self, name):
        self.trial_id = name


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [0.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def killed(monkeypatch):
    names = []

    def kill(trial):
        names.append(trial.trial_id)
        return True

    monkeypatch.setattr(ray_compat, "kill_worker", kill)
    return names


def step(dog, clock, seconds):
    """Tune's loop, once a second."""
    for _ in range(seconds):
        clock[0] += 1
        dog.on_step_end(0, [])


def test_a_silent_trial_is_killed_once(clock, killed, capsys):
    dog, silent, busy = HangWatchdog(10), Trial("00000"), Trial("00001")
    for trial in (silent, busy):
        dog.on_trial_start(0, [], trial)
    step(dog, clock, 6)
    dog.on_trial_result(0, [], busy, {})
    step(dog, clock, 6)
    assert killed == ["00000"]
    assert "trial 00000: no result for 10 s (--hang-seconds)" in capsys.readouterr().out
    step(dog, clock, 3)
    assert killed == ["00000"]


def test_a_trial_that_was_restarted_is_watched_again(clock, killed):
    dog, trial = HangWatchdog(10), Trial("00000")
    for _ in range(2):
        dog.on_trial_start(0, [], trial)
        step(dog, clock, 11)
    assert killed == ["00000", "00000"]


@pytest.mark.parametrize("end", ["on_trial_complete", "on_trial_error", "on_trial_recover"])
def test_a_trial_that_ended_is_not_killed(clock, killed, end):
    dog, trial = HangWatchdog(10), Trial("00000")
    dog.on_trial_start(0, [], trial)
    getattr(dog, end)(0, [], trial)
    step(dog, clock, 60)
    assert killed == []


@pytest.mark.parametrize("seconds", [2, 100])
def test_a_driver_that_was_stopped_takes_nobody_for_hung(clock, killed, seconds):
    dog, trial = HangWatchdog(seconds), Trial("00000")
    dog.on_trial_start(0, [], trial)
    clock[0] += 8 * 3600  # Ctrl-Z over night
    dog.on_step_end(0, [])
    assert killed == []
    step(dog, clock, seconds)
    assert killed == ["00000"]
