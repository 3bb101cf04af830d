"""When the first Ctrl-C is acted upon."""

import gc
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from sweeps.engine import shutdown as shutdown_module
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminal_that_closes_and_a_scheduler_stop_it_like_ctrl_c(number):
    with GracefulShutdown("again") as shutdown, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
        pytest.fail("it went on")
    assert shutdown.requested


class AsksRay:
    """In a cycle, as Tune's objects are; it asks Ray's processes when it is collected."""

    asked = False

    def __init__(self):
        self.itself = self

    def __del__(self):
        type(self).asked = True


@pytest.mark.parametrize("gone", [False, True])
def test_once_asked_to_stop_nothing_is_collected_that_would_wait_for_ray(gone):
    """Ray's processes had got the same SIGTERM: the driver waited for them for ever."""
    with socket.create_server(("127.0.0.1", 0)) as ray:
        address = f"127.0.0.1:{ray.getsockname()[1]}"
        if gone:
            ray.close()
        try:
            with GracefulShutdown("again") as shutdown, pytest.raises(KeyboardInterrupt):
                shutdown._address = address
                interrupt()
            if gone:
                AsksRay()
                assert len([[] for _ in range(100_000)]) and not AsksRay.asked
            assert shutdown.ray_is_gone() == gone and gc.isenabled() != gone
        finally:
            gc.enable()


STUCK = """
import os, signal, time
from sweeps.engine import shutdown
shutdown.joined_address = lambda: "127.0.0.1:1"
shutdown.own_raylet = lambda: None
shutdown.LEAVE_SECONDS = 1
with shutdown.GracefulShutdown("again") as asked, asked.ends_tune():
    asked.requested = True
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # as in a call of Ray's C++
    time.sleep(60)
"""


def test_a_call_that_rays_dead_processes_will_never_answer_is_left_in_time():
    done = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=50)
    assert done.returncode == 130 and "resume with: again" in done.stdout, done.stderr


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with GracefulShutdown("again") as shutdown:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not shutdown.requested
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


TERM, HUP = signal.SIGTERM, signal.SIGHUP


@pytest.mark.parametrize("numbers", [(TERM, TERM), (TERM, HUP), (HUP, TERM), (HUP, HUP, HUP)])
def test_a_request_that_comes_twice_is_one_request(numbers):
    """`timeout` signals the process and its group, systemd sends SIGHUP after SIGTERM."""
    ended = False
    with GracefulShutdown("again") as shutdown, pytest.raises(KeyboardInterrupt):  # noqa: SIM117
        with shutdown.postponed():
            for number in numbers:
                os.kill(os.getpid(), number)  # a second request would end this process
            ended = True
    assert ended


def test_mlflow_is_told_at_once_and_a_ray_that_is_gone_is_not_waited_for(monkeypatch):
    told = []
    with socket.create_server(("127.0.0.1", 0)) as cluster:
        monkeypatch.setattr(
            shutdown_module, "joined_address", lambda: f"127.0.0.1:{cluster.getsockname()[1]}"
        )
        monkeypatch.setattr(shutdown_module, "own_raylet", lambda: None)
        with GracefulShutdown("again", lambda: told.append(time.monotonic())) as shutdown:
            before = signal.signal(signal.SIGUSR1, lambda *_: None)  # Tune, that waits for an epoch
            try:
                with pytest.raises(KeyboardInterrupt), shutdown.ends_tune():
                    interrupt()
                    time.sleep(1.2)
                    assert told and not shutdown.without_ray
                    cluster.close()
                    time.sleep(30)
            finally:
                signal.signal(signal.SIGUSR1, before)
    assert shutdown.without_ray and len(told) == 1


def test_a_ray_that_ends_by_itself_is_noticed_too(monkeypatch):
    monkeypatch.setattr(shutdown_module, "joined_address", lambda: "127.0.0.1:9")
    monkeypatch.setattr(shutdown_module, "own_raylet", lambda: None)
    monkeypatch.setattr(shutdown_module, "LOST_SECONDS", 0.3)
    with GracefulShutdown("again") as shutdown, pytest.raises(KeyboardInterrupt):  # noqa: SIM117
        with shutdown.ends_tune():
            time.sleep(30)
    assert shutdown.without_ray and not shutdown.requested
