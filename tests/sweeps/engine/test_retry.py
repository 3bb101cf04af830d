"""What is away is tried again, for so long and no longer."""

import time

import pytest

from ali.errors import UserError
from sweeps.engine import retry as module
from sweeps.engine.retry import AwayError, Retry


class Away:
    """Fails so many times, then answers."""

    def __init__(self, times, error=None):
        self.times, self.calls, self.error = times, 0, error or OSError("no route\nto it")

    def __call__(self):
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return "here"


def test_it_is_tried_again_until_it_answers(caplog):
    action = Away(1)
    assert Retry("the storage", 60)(action) == "here" and action.calls == 2
    assert caplog.messages == ["the storage is away, trying again: no route"]


def test_after_the_outage_each_call_gets_one_try():
    retry, action = Retry("MLflow", 0.6), Away(9)
    with pytest.raises(AwayError, match=r"MLflow has been away for 1 s .no route.: resume"):
        retry(action)
    assert action.calls == 2
    with pytest.raises(AwayError):
        retry(action)
    assert action.calls == 3
    assert issubclass(AwayError, UserError)


def test_an_error_that_stays_is_raised_at_once():
    action = Away(1, ValueError("wrong"))
    with pytest.raises(ValueError, match="wrong"):
        Retry("MLflow", 60, lambda error: not isinstance(error, ValueError))(action)
    assert action.calls == 1


def test_what_does_not_answer_is_named(monkeypatch, caplog):
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.1)
    Retry("the storage", 60)(lambda: time.sleep(0.3))
    assert caplog.messages == ["still waiting for the storage, which has not answered for 0 s"], (
        "once"
    )


def test_a_stop_ends_the_waiting():
    began = time.monotonic()
    with pytest.raises(AwayError):
        Retry("MLflow", 60, stopped=lambda: time.monotonic() - began > 0.1)(Away(9))
    assert time.monotonic() - began < 2


def test_what_is_told_of_an_error_holds_no_password(caplog):
    Retry("MLflow", 60)(Away(1, OSError("no route to http://me:hush@host/api")))
    assert "hush" not in caplog.text and "host/api" in caplog.text
