"""sweeps.engine.lock: one process at a time, also where the file system has no locks."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys

import pytest

from ali.errors import UserError
from sweeps.engine import lock
from sweeps.engine.lock import LOCK, LockedError, driver_lock
from sweeps.engine.tracking.client import _database_lock, connect

NO_LOCKS = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP]  # NFS without lockd; Lustre; others
QUICK = {"TOUCH_SECONDS": 0.2, "DEAD_SECONDS": 1.0, "SETTLE_SECONDS": 0.2}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in QUICK.items():
        monkeypatch.setattr(lock, name, seconds)


@pytest.fixture
def without_locks(monkeypatch):
    """Sets the number of the error that `flock` ends with."""

    def fail(number):
        def flock(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)

    return fail


def test_one_process_holds_it(tmp_path, capfd):
    with driver_lock(tmp_path, "sweep 's'"):
        says = f"sweep 's' is being run by process {os.getpid()} on .*: wait for it, or stop it"
        with pytest.raises(LockedError, match=says), driver_lock(tmp_path, "sweep 's'"):
            pass
    with driver_lock(tmp_path, "sweep 's'"):
        pass
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("number", NO_LOCKS)
def test_only_a_held_lock_is_a_held_lock(tmp_path, capfd, without_locks, number):
    without_locks(number)
    with driver_lock(tmp_path, "sweep 's'"):
        out = capfd.readouterr().out
        assert f"{tmp_path} is on a file system without locks" in out and "Not protected: " in out
        says = f"is being run by process {os.getpid()} on"
        with pytest.raises(LockedError, match=says), driver_lock(tmp_path, "sweep 's'"):
            pass
        assert "whether it is still alive" in capfd.readouterr().out
    with driver_lock(tmp_path, "sweep 's'"):
        assert "whether it is still alive" not in capfd.readouterr().out


def test_a_held_lock_counts_where_locks_are_lacking_now(tmp_path, without_locks):
    """As when a node has lost its lock service, or mounts the folder otherwise."""
    with driver_lock(tmp_path, "sweep 's'"):
        without_locks(errno.ENOLCK)
        with pytest.raises(LockedError), driver_lock(tmp_path, "sweep 's'"):
            pass


def test_of_two_that_start_at_once_without_locks_one_goes_on(tmp_path, monkeypatch, without_locks):
    without_locks(errno.ENOLCK)
    other = f"process 1 on other\n0123 {lock.UNLOCKED}"
    # While this process waits for such as have begun, too, one of them writes its name.
    monkeypatch.setattr(lock.time, "sleep", lambda _: (tmp_path / LOCK).write_text(other))
    with pytest.raises(LockedError, match="process 1 on other"), driver_lock(tmp_path, "s"):
        pass
    assert (tmp_path / LOCK).read_text() == other


FAILING = """
#include <errno.h>
int flock(int file, int how) { errno = ENOLCK; return -1; }
"""
HOLD = f"""
import sys, time
from pathlib import Path
from sweeps.engine import lock
vars(lock).update({QUICK})
with lock.driver_lock(Path(sys.argv[1]), "sweep 's'"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not shutil.which("cc"), reason="a flock that fails asks for a C compiler")
def test_a_process_that_cannot_lock_is_seen_while_it_lives(tmp_path, capfd):
    """A real process whose `flock` fails, and this one, whose does not."""
    library = tmp_path / "failing.so"
    compile_ = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(compile_, input=FAILING, text=True, check=True)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        env=os.environ | {"LD_PRELOAD": str(library)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while "held" not in (line := other.stdout.readline()):
            assert line, other.stderr.read()
        says = f"process {other.pid} "
        with pytest.raises(LockedError, match=says), driver_lock(tmp_path, "sweep 's'"):
            pass
        other.send_signal(signal.SIGSTOP)
        with driver_lock(tmp_path, "sweep 's'"):
            assert "checking for 1 s whether it is still alive" in capfd.readouterr().out
            other.send_signal(signal.SIGCONT)
            assert other.wait(timeout=30) == 1
            assert f"was taken over by process {os.getpid()} " in other.stderr.read()
    finally:
        other.kill()


def test_a_planted_lock_truncates_nothing(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in (LOCK, "mlflow.db.lock"):
        (tmp_path / name).symlink_to(victim)
    says = f"{LOCK} is a link or no file: remove it"
    with pytest.raises(UserError, match=says), driver_lock(tmp_path, "s"):
        pass
    with pytest.raises(UserError, match=r"mlflow\.db\.lock is a link or no file: remove it"):
        connect(f"sqlite:///{tmp_path}/mlflow.db")
    assert victim.read_text() == "precious"


def test_a_database_that_another_user_has_linked_is_refused(tmp_path, foreign_link):
    foreign_link(tmp_path / "mlflow.db", tmp_path / "victim")
    with pytest.raises(UserError, match=r"mlflow\.db is a link that another user made"):
        connect(f"sqlite:///{tmp_path}/mlflow.db")
    assert not (tmp_path / "victim").exists()


def test_sqlite_needs_no_more_locks_than_its_own(tmp_path, monkeypatch, without_locks):
    without_locks(errno.ENOLCK)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with _database_lock(uri):
        pass

    def lockf(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with pytest.raises(UserError, match=r"has no locks .*: give the --tracking-uri of a server"):
        connect(uri)
