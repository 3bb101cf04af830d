"""What every command line here shares: options from dataclasses, one clear line for a mistake.

Exit codes: 0 done; 2 the user's mistake, one line on stderr; 130 and 143 ended by Ctrl-C and
SIGTERM; 1 anything else.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro

from ali import environment
from ali.errors import UserError

T = TypeVar("T")
# Markers: an experiment's options are --epochs, not --config.epochs; nor after a subcommand's name
_MARKERS = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)


def parse_args(
    options: Any,
    argv: Sequence[str] | None = None,
    default: T | None = None,
    prog: str | None = None,
) -> Any:
    """The dataclass `options` (or a union of them, one a subcommand) from the command line.

    Args:
        argv: the arguments; None: the process's own.
        default: instance whose values stand where an option is not given.
        prog: the program's name in its help.

    Raises UserError, one line, for what does not parse. `--help` prints and exits.
    """
    arguments: dict[str, Any] = {"args": argv, "prog": prog, "config": _MARKERS}
    if default is not None:
        arguments["default"] = default
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return tyro.cli(options, **arguments)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
    # tyro has printed a box. Once more with room for unbroken lines, to make a sentence of it.
    box = io.StringIO()
    wide, quiet = environment.temporarily(COLUMNS="10000"), contextlib.redirect_stderr(box)
    with wide, quiet, contextlib.suppress(SystemExit):
        tyro.cli(options, **arguments)
    name = prog or Path(sys.argv[0]).name
    raise UserError(f"{_sentence(box.getvalue())} ({name} --help lists the options)")


def main(function: Callable[[], int | None]) -> NoReturn:
    """Runs `function` and ends the process: its result (None: 0) is the exit code.

    A UserError, and an OSError that the user can mend (no permission, read-only, full disk), are
    one line on stderr and code 2. Any other exception keeps its traceback and is code 1.
    """
    try:
        code = function() or 0
        sys.stdout.flush()
    except UserError as error:
        code = _fail(str(error), 2)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except KeyboardInterrupt as stop:
        code = _fail(str(stop) or "interrupted", 128 + getattr(stop, "signal", signal.SIGINT))
    except OSError as error:
        if error.errno not in _MENDABLE:
            raise
        where = f" {error.filename}" if error.filename else ""
        code = _fail(f"cannot write{where}: {error.strerror}; {_MENDABLE[error.errno]}", 2)
    sys.exit(code)


def command(*arguments: object) -> str:
    """A command that runs when pasted into a fresh shell where this process was started.

    It names the interpreter that is running, which a fresh shell need not have on its PATH.
    """
    interpreter, here = Path(sys.executable), Path.cwd()
    if interpreter.is_relative_to(here):
        interpreter = interpreter.relative_to(here)
    first = str(interpreter) if os.sep in str(interpreter) else f".{os.sep}{interpreter}"
    return shlex.join([first, *map(str, arguments)])


_MENDABLE = {
    13: "choose a folder you may write to",  # EACCES
    1: "choose a folder you may write to",  # EPERM
    30: "choose a folder that is not read-only",  # EROFS
    28: "free some space",  # ENOSPC
    122: "free some space",  # EDQUOT
}


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where Ctrl-C would be."""

    signal = signal.SIGTERM


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Within, SIGTERM raises Terminated in the main thread."""

    def stop(number: int, frame: Any) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str, code: int) -> int:
    print("error:" if code == 2 else "stopped:", " ".join(message.split()), file=sys.stderr)
    return code


def _sentence(box: str) -> str:
    """What went wrong, of a box that tyro drew: its sections but for those that repeat the help."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    inside = "\n".join(line.strip("│ ") for line in plain.splitlines() if line[:1] == "│")
    sections = [" ".join(section.split()) for section in re.split(r"^─+$", inside, flags=re.M)]
    told = [s for s in sections if s and not s.startswith(("Argument helptext", "For full help"))]
    return "; ".join(told) or " ".join(plain.split())
