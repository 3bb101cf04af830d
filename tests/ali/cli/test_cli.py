"""ali.cli, which all command lines share: exit codes, options, signals."""

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from ali import cli
from ali.errors import UserError
from tests.ali.cli.commands import mistake


def test_mistaken_commands(tmp_path):
    mistake(tmp_path, says="train")
    mistake(tmp_path, "tarin", says="tarin")
    mistake(tmp_path, "train", says="--output-dir")


def code_of(function):
    with pytest.raises(SystemExit) as stop:
        cli.main(function)
    return stop.value.code


def raiser(error):
    def function():
        raise error

    return function


def test_exit_codes(capsys):
    assert code_of(lambda: None) == 0
    assert code_of(lambda: 3) == 3
    assert code_of(raiser(KeyboardInterrupt())) == 130
    assert code_of(raiser(cli.Terminated())) == 143
    capsys.readouterr()
    assert code_of(raiser(UserError("two\nlines"))) == 2
    assert capsys.readouterr().err == "error: two lines\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_disk_that_cannot_be_written(capsys, number):
    assert code_of(raiser(OSError(number, os.strerror(number), "runs/x"))) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: cannot write runs/x") and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "error",
    [MemoryError("8 TiB"), RuntimeError("[enforce fail] can't allocate memory: 8 TiB\nat C")],
)
def test_too_little_memory_is_one_line(capsys, error):
    assert code_of(raiser(error)) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: not enough memory") and len(err.splitlines()) == 1


def test_no_home_is_said_with_what_to_set(capsys):
    assert code_of(lambda: Path("~no-such-user").expanduser() and None) == 2  # what pathlib raises
    assert "set HOME to a folder" in capsys.readouterr().err


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.main(lambda: 1 // 0)
    with pytest.raises(OSError, match="gone"):
        cli.main(raiser(OSError(errno.EIO, "gone")))


@dataclass(frozen=True)
class Options:
    """A sweep's options."""

    name: str = "svhn"
    """Name."""
    num_trials: int = 8
    """Trials."""


def test_parse_args_puts_options_on_a_default():
    parsed = cli.parse_args(Options, ["--num-trials", "3"], default=Options(name="other"))
    assert parsed == Options("other", 3)
    with pytest.raises(UserError, match="--num-trails") as caught:
        cli.parse_args(Options, ["--num-trails", "3"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_terminable_puts_the_handler_back(number):
    before = signal.getsignal(number)
    with pytest.raises(cli.Terminated) as stop, cli.terminable():
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert signal.getsignal(number) is before and stop.value.signal == number


@pytest.mark.parametrize(("to", "code"), [("/dev/full", 2), ("&-", 0), ("/dev/null", 0)])
def test_output_that_cannot_be_written(to, code):
    done = "from ali.cli import main; main(lambda: print('±'))"
    shell = f'PYTHONIOENCODING=ascii "{sys.executable}" -c "{done}" >{to}'
    told = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert (told.returncode, len(told.stderr.splitlines())) == (code, code // 2), told.stderr
