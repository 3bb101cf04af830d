"""What all command lines share: options from dataclasses, errors as one line, exit codes.

Exit codes: 0 done; 2 a mistake of the user's, one line on stderr; 130 Ctrl-C; 143 SIGTERM; 129
SIGHUP; 1 anything else.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import operator
import os
import re
import shlex
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args, get_origin

import tyro

from ali import environment
from ali.arguments import Arguments, Option, values_of
from ali.errors import UserError
from ali.output import finish_output, first_line, prepare_output

CONFIG = Option(
    Path | None,
    "File of options, YAML or TOML, read where this command runs; options given here override "
    "it. Sweeps write theirs as options.yaml to their folder, full trainings as best.yaml.",
    None,
)
# The options of a nested dataclass have no prefix: --epochs, not --experiment.epochs
_MARKERS = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)


def parse_args(
    options: Any,
    argv: Sequence[str] | None = None,
    default: Any = None,
    prog: str | None = None,
    read: Callable[[Path], dict[str, Any]] | None = None,
) -> Any:
    """Parses the command line into the dataclass `options`, or a union of them (subcommands).

    Args:
        argv: the arguments; None: those of the process.
        default: instance with the values of options that are not given.
        prog: how the program is called, for --help; None: the script of the process, whose first
            lines --help shows.
        read: reads the values of options from a file that `--config` names; None: there is no such
            option.

    Raises UserError, one line, if parsing fails. `--help` prints and exits.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    values = {} if default is None else values_of(default)
    if read and (file := _config_file(argv)):
        values |= read(file)
    made: dict[type, Arguments] = {}
    asked: Any = ()
    for member in get_args(options) or (options,):
        kind, *how = get_args(member) if get_origin(member) is Annotated else (member,)
        program = prog or f"python {sys.argv[0]}"
        program += f" {kind.__name__.lower()}" if get_args(options) else ""
        own = values if default is None or isinstance(default, kind) else {}
        one = Arguments(kind, program, own, {"config": CONFIG} if read else {})
        made[one.type] = one
        asked += (Annotated[one.type, *how] if how else one.type,)
    asked = functools.reduce(operator.or_, asked)
    arguments: dict[str, Any] = {"args": argv, "prog": prog, "config": _MARKERS}
    if prog is None:
        about = (sys.modules["__main__"].__doc__ or "").strip().partition("\n\n")[0]
        arguments["description"] = about or None
    text = _Text(sys.stdout)
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(io.StringIO()):
            parsed = tyro.cli(asked, **arguments)
        return made[type(parsed)].build(parsed)
    except SystemExit as stop:
        if stop.code in (0, None):
            print(_wrapped(text.getvalue()), end="")
            raise
    # tyro has printed its error in a box. Print it again, too wide to wrap, to extract the text.
    box = io.StringIO()
    wide, quiet = environment.temporarily(COLUMNS="10000"), contextlib.redirect_stderr(box)
    with wide, quiet, contextlib.suppress(SystemExit):
        tyro.cli(asked, **arguments)
    called = prog.split()[1:] if prog else sys.argv[:1]  # without "python"
    sentence = _sentence(box.getvalue()).rstrip(".")
    raise UserError(f"{sentence}; see {command(*called, '--help')}")


def _config_file(argv: Sequence[str]) -> Path | None:
    """The file that --config names, which is read before the other options are parsed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    try:
        return parser.parse_known_args(argv)[0].config
    except argparse.ArgumentError:  # tyro reports it
        return None


def main(function: Callable[[], int | None]) -> NoReturn:
    """Runs `function` and exits with its result (None: 0) as the exit code.

    A UserError, and an OSError that the user can fix (no permission, read-only, full disk), become
    one line on stderr and exit code 2. Any other exception keeps its traceback and exits with 1.
    """
    prepare_output()
    try:
        code = function() or 0
        sys.stdout.flush()
    except UserError as error:
        code = _fail(str(error), 2)
    except MemoryError as error:
        code = _fail(f"not enough memory ({first_line(error) or 'for this'}): ask for less", 2)
    except RuntimeError as error:
        if re.search("allocate memory|out of memory", str(error)):  # torch's
            code = _fail(f"not enough memory ({first_line(error)}): ask for less", 2)
        elif "home directory" in str(error):  # pathlib's: it finds no home
            code = _fail(
                f"HOME is not set, and user ID {os.getuid()} has no home folder: set HOME to a "
                "folder of yours",
                2,
            )
        else:
            raise
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        code = 1
    except KeyboardInterrupt as stop:
        code = _fail(str(stop) or "interrupted", 128 + getattr(stop, "signal", signal.SIGINT))
    except OSError as error:
        if error.errno not in _FIXES:
            raise
        where = f" {error.filename}" if error.filename else ""
        how = "use" if error.errno in _NAMES else "write"
        code = _fail(f"cannot {how}{where}: {error.strerror}; {_FIXES[error.errno]}", 2)
    finally:
        finish_output()
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


_FIXES = {
    13: "choose a folder you may write to",  # EACCES
    1: "choose a folder you may write to",  # EPERM
    30: "choose a folder that is not read-only",  # EROFS
    28: "free some space",  # ENOSPC
    122: "free some space",  # EDQUOT
}
_NAMES = {
    36: "choose a shorter name",  # ENAMETOOLONG
    21: "it is a folder, move it away",  # EISDIR
    20: "a part of that path is a file, choose another",  # ENOTDIR
}
_FIXES |= _NAMES


class Terminated(KeyboardInterrupt):
    """Raised by SIGTERM and SIGHUP, as KeyboardInterrupt is by Ctrl-C."""

    signal: int = signal.SIGTERM


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """In the block, SIGTERM raises Terminated in the main thread; SIGHUP too, without nohup."""

    def stop(number: int, frame: Any) -> NoReturn:
        stopped = Terminated()
        stopped.signal = number
        raise stopped

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if number == signal.SIGTERM or handler != signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """In the block, SIGINT, SIGTERM and SIGHUP wait for its end; the first of them counts."""
    came: list[int] = []
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):  # the reader may have closed it
        print("error:" if code == 2 else "stopped:", " ".join(message.split()), file=sys.stderr)
    return code


class _Text(io.StringIO):
    """Collects text meant for a stream; has the stream's encoding and isatty."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return self._stream.isatty()


def _wrapped(text: str) -> str:
    """tyro's help with the lines above its boxes wrapped: tyro fits only the boxes."""
    width, lines = shutil.get_terminal_size().columns, []
    for line in text.split("\n"):
        if len(_plain(line)) > width:
            line = textwrap.fill(
                line,
                width,
                subsequent_indent=" " * 7 * _plain(line).startswith("usage: "),
                break_long_words=False,
                break_on_hyphens=False,
            )
        lines.append(line)
    return "\n".join(lines)


def _plain(text: str) -> str:
    """A text without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _sentence(box: str) -> str:
    """The error message in a box that tyro has drawn, without the parts that repeat the help."""
    plain = _plain(box)
    inside = "\n".join(line.strip("│ ") for line in plain.splitlines() if line[:1] == "│")
    sections = [
        " ".join(section.split()) for section in re.split(r"^(?:─+|-{5,})$", inside, flags=re.M)
    ]
    said = [s for s in sections if s and not s.startswith(("Argument helptext", "For full help"))]
    return "; ".join(said) or " ".join(plain.split())
