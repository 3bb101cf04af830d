"""When the first Ctrl-C is acted upon."""

import os
import signal

import pytest

from sweeps.engine.shutdown import GracefulShutdown


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_signal_interrupts():
    with GracefulShutdown("again") as shutdown, pytest.raises(KeyboardInterrupt):
        interrupt()
        pytest.fail("it went on")
    assert shutdown.requested


def test_a_write_to_the_study_is_finished_first():
    """Optuna's release of its journal's lock, cut in two, ends in a FileNotFoundError."""
    finished = False
    with GracefulShutdown("again") as shutdown, pytest.raises(KeyboardInterrupt):
        with shutdown.postponed():
            interrupt()
            finished = True
        pytest.fail("it went on")
    assert finished
