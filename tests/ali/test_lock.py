"""ali.lock: one process at a time, also where the file system has no locks."""

import errno
import os
import shutil
import signal
import subprocess
import sys

import pytest

from ali import lock
from ali.errors import UserError
from ali.lock import LOCK, LockedError, folder_lock

NO_LOCKS = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP]  # NFS without lockd; Lustre; others
QUICK = {"TOUCH_SECONDS": 0.2, "DEAD_SECONDS": 1.0, "SETTLE_SECONDS": 0.2}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in QUICK.items():
        monkeypatch.setattr(lock, name, seconds)


def test_one_process_holds_it(tmp_path, capfd):
    with folder_lock(tmp_path, "sweep 's'"):
        says = f"sweep 's' is being run by process {os.getpid()} on .*: wait for it, or stop it"
        with pytest.raises(LockedError, match=says), folder_lock(tmp_path, "sweep 's'"):
            pass
    with folder_lock(tmp_path, "sweep 's'"):
        pass
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("number", NO_LOCKS)
def test_only_a_held_lock_is_a_held_lock(tmp_path, capfd, without_locks, number):
    without_locks(number)
    with folder_lock(tmp_path, "sweep 's'"):
        out = capfd.readouterr().out
        assert f"{tmp_path} is on a file system without locks" in out and "Not protected: " in out
        says = f"is being run by process {os.getpid()} on"
        with pytest.raises(LockedError, match=says), folder_lock(tmp_path, "sweep 's'"):
            pass
        assert "whether it is still alive" in capfd.readouterr().out
    with folder_lock(tmp_path, "sweep 's'"):
        assert "whether it is still alive" not in capfd.readouterr().out


def test_a_held_lock_counts_where_locks_are_lacking_now(tmp_path, without_locks):
    """As when a node has lost its lock service, or mounts the folder otherwise."""
    with folder_lock(tmp_path, "sweep 's'"):
        without_locks(errno.ENOLCK)
        with pytest.raises(LockedError), folder_lock(tmp_path, "sweep 's'"):
            pass


def test_of_two_that_start_at_once_without_locks_one_goes_on(tmp_path, monkeypatch, without_locks):
    without_locks(errno.ENOLCK)
    other = f"process 1 on other\n0123 {lock.UNLOCKED}"
    # While this process waits for such as have begun, too, one of them writes its name.
    monkeypatch.setattr(lock.time, "sleep", lambda _: (tmp_path / LOCK).write_text(other))
    with pytest.raises(LockedError, match="process 1 on other"), folder_lock(tmp_path, "s"):
        pass
    assert (tmp_path / LOCK).read_text() == other


FAILING = """
#include <errno.h>
int flock(int file, int how) { errno = ENOLCK; return -1; }
"""
HOLD = f"""
import sys, time
from pathlib import Path
from ali import lock
vars(lock).update({QUICK})
with lock.folder_lock(Path(sys.argv[1]), "sweep 's'"):
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
        with pytest.raises(LockedError, match=says), folder_lock(tmp_path, "sweep 's'"):
            pass
        other.send_signal(signal.SIGSTOP)
        with folder_lock(tmp_path, "sweep 's'"):
            assert "checking for 1 s whether it is still alive" in capfd.readouterr().out
            other.send_signal(signal.SIGCONT)
            assert other.wait(timeout=30) == 1
            assert f"was taken over by process {os.getpid()} " in other.stderr.read()
    finally:
        other.kill()


def test_a_planted_lock_truncates_nothing(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / LOCK).symlink_to(victim)
    says = f"{LOCK} is a link or no file: remove it"
    with pytest.raises(UserError, match=says), folder_lock(tmp_path, "s"):
        pass
    assert victim.read_text() == "precious"
