"""Text for people: failing output stops no work, and users' text is not read as markup."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import re
import select
import sys
import unicodedata
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

PATIENCE = 10.0  # seconds that work waits for a reader that takes nothing (Ctrl-S, less)

# Characters that this project prints and that ASCII or another narrow encoding may lack.
_SIMILAR = {"–": "-", "—": "-", "−": "-", "…": "...", "±": "+-", "×": "x", "·": ".", "█": "#"}
_SIMILAR |= {"β": "b", "σ": "s", "§": "section ", "→": "->"}


_SECRET = re.compile(r"([?&;](?:password|passwd|pwd|token|secret)=)[^&;\s]*", re.IGNORECASE)


def without_password(text: str) -> str:
    """An address, or a text with addresses in it, without passwords and the like."""
    return _SECRET.sub(r"\1…", re.sub(r"://(?!/)\S*@", "://…@", text))


def first_line(error: object) -> str:
    """An error as one line, without passwords."""
    lines = str(error).strip().splitlines()
    return without_password(lines[0][:200]) if lines else type(error).__name__


def prepare_output() -> None:
    """Makes the process's streams take any text in any encoding, even if they were closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed (`>&-`): the next file would get its number, and text meant for it
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    codecs.register_error("similar", _similar)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):  # from text that it holds already
                stream.reconfigure(errors="similar")


@contextlib.contextmanager
def lossy_output() -> Iterator[None]:
    """In the block, output that cannot be printed is dropped: its reader is gone, the disk full."""
    prepare_output()
    out, err = _Lossy(sys.stdout), _Lossy(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):  # type: ignore[type-var]
        try:
            yield
        finally:
            out.end()
            err.end()


def finish_output() -> None:
    """To call before the process exits: Python fails there if a stream cannot write its text."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _discard(stream)


def write_now(number: int, text: str) -> None:
    """Writes to a file descriptor past Python's buffers: a signal may come amid a print."""
    with contextlib.suppress(OSError):
        if _takes_text(number, PATIENCE):
            os.write(number, text.encode(errors="replace"))


def console(**arguments: Any) -> Console:
    """rich's, for text and tables as they are: rich reads `[red]` and `:smile:` as markup."""
    from rich.console import Console

    # In a notebook rich would show what is meant for a file.
    plain: dict[str, Any] = {
        "markup": False,
        "emoji": False,
        "highlight": False,
        "force_jupyter": False,
    }
    return Console(**arguments, **plain)


class _Lossy:
    """A stream whose text is dropped where it cannot be written."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._patience = stream, PATIENCE

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            if self._is_ready():
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            if self._is_ready():
                self._stream.flush()

    def end(self) -> None:
        """Discards what cannot be written, so that it does not stop the process at its exit."""
        self.flush()
        if not self._patience:
            _discard(self._stream)

    def _is_ready(self) -> bool:
        try:
            ready = _takes_text(self._stream.fileno(), self._patience)
        except io.UnsupportedOperation:  # a StringIO, say
            return True
        self._patience = PATIENCE if ready else 0.0  # wait only once for a stopped reader
        return ready


def _takes_text(number: int, seconds: float) -> bool:
    """Whether a write would return without waiting; it may fail."""
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return bool(poll.poll(1000 * seconds))


def _discard(stream: IO[str]) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _similar(error: UnicodeError) -> tuple[str, int]:
    """A codec's error handler: replaces characters it lacks by similar ones."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(map(_similar_character, lacking)), error.end


def _similar_character(character: str) -> str:
    name = unicodedata.name(character, "")
    if name.startswith("BOX DRAWINGS"):
        across, along = ("HORIZONTAL" in name, "VERTICAL" in name)
        return "-" if across and not along else "|" if along and not across else "+"
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return _SIMILAR.get(character) or plain or "?"
