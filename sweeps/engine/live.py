"""What a sweep prints: lines, in its log and on a terminal, there with a live view below them."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ali.beside import beside
from ali.files import open_regular
from ali.output import console, write_now

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

LOG = "sweep.log"  # in a sweep's folder
REFRESH_SECONDS = 0.5
KEPT_LINES = 500  # to print again when the terminal's size has changed
LOG_WIDTH = 100  # columns of the view in the log

View = Callable[[int, int], "Sequence[Text]"]  # its lines, for a terminal's columns and rows


def say(text: str) -> None:
    """Prints a line with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


class LiveView:
    """In the block, all that is printed also goes to a log, with the date.

    While it shows a view (`show`), a thread draws it and prints new lines above it: neither the
    sweep nor a signal's handler ever waits for the terminal. The cursor is never hidden, since a
    kill -9 would leave it so; it waits on an empty line below the view, where the output of
    others does no harm. Without a terminal, or with TERM=dumb, lines are printed as they come.
    """

    def __init__(self, log: Path) -> None:
        """Raises UserError if the log cannot be written."""
        self._log = open_regular(log, "ab", buffering=0)
        self._lock = threading.RLock()  # a signal's handler may print amid a print
        self._history: deque[str] = deque(maxlen=KEPT_LINES)
        # For a terminal that takes no output.
        self._waiting: deque[str] = deque(maxlen=20 * KEPT_LINES)
        self._live = False

    def __enter__(self) -> LiveView:
        self._out, err = sys.stdout, sys.stderr
        self._streams = contextlib.ExitStack()
        out, err = _Stream(self, self._out), _Stream(self, err)
        self._streams.enter_context(contextlib.redirect_stdout(out))  # type: ignore[type-var]
        self._streams.enter_context(contextlib.redirect_stderr(err))  # type: ignore[type-var]
        for handler in _handlers():  # existing ones hold the previous stderr
            if handler.stream in (sys.__stderr__, sys.__stdout__, self._out, err.stream):
                self._streams.callback(handler.setStream, handler.stream)
                handler.setStream(err)
        return self

    def __exit__(self, *_: object) -> None:
        self._streams.close()
        self._log.close()

    @contextlib.contextmanager
    def show(self, view: View) -> Iterator[None]:
        """In the block, the view stands below the lines, if there is a terminal for it.

        Its last state goes to the log.
        """
        screen = console(file=self._out)
        try:
            if self._out.isatty() and screen.is_interactive:
                self._live = True
                with beside(lambda ended: self._draw(screen, view, ended)):
                    yield
            else:
                yield
        finally:
            for line in view(LOG_WIDTH, KEPT_LINES):
                self._record(line.plain.rstrip())

    def urgent(self, text: str, last: bool = False) -> None:
        """Prints a line from a signal's handler; `last`: the process is about to end."""
        self._record(text)
        if self._live and not last:
            self._waiting.append(text)
        else:
            write_now(1, f"{text}\n")

    def write(self, stream: _Stream, text: str) -> None:
        """What is printed to one of the two streams."""
        with self._lock:
            *lines, stream.rest = (stream.rest + text).split("\n")
            for line in lines:
                self._record(line)
            if self._live and stream.isatty():
                self._waiting.extend(lines)
            else:
                self._history.extend(lines)
                stream.stream.write(text)

    def _record(self, line: str) -> None:
        """Adds a line to the log; a full disk stops no sweep."""
        told = re.match(r"\d\d:\d\d:\d\d ", line)  # by `say`
        when = time.strftime("%Y-%m-%d" if told else "%Y-%m-%d %H:%M:%S")
        with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
            self._log.write(f"{when} {line}".rstrip().encode(errors="replace") + b"\n")

    def _draw(self, screen: Console, view: View, ended: threading.Event) -> None:
        from rich.console import Group
        from rich.live import Live

        size, last = screen.size, False
        screen.show_cursor = lambda show=True: False  # type: ignore[method-assign]  # as it is
        live = Live(
            console=screen, auto_refresh=False, transient=True,
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        try:
            with live:
                while not last:
                    last = ended.wait(REFRESH_SECONDS)
                    lines = view(screen.width, screen.height)
                    if size != screen.size:  # the terminal may have wrapped what was there
                        size = screen.size
                        screen.clear()
                        for _ in range(min(size.height - len(lines) - 3, len(self._history))):
                            self._waiting.appendleft(self._history.pop())
                    with screen:  # one write
                        if new := self._take_waiting():
                            screen.print("\n".join(new), soft_wrap=True)
                        live.update(Group("", *lines, ""), refresh=True)
        finally:
            with self._lock:
                self._live = False
                self._out.write("".join(f"{line}\n" for line in self._take_waiting()))
                self._out.flush()

    def _take_waiting(self) -> list[str]:
        new = []
        with contextlib.suppress(IndexError):
            while True:
                new.append(self._waiting.popleft())
        self._history.extend(new)
        return new


class _Stream:
    """Replaces one of the process's streams."""

    def __init__(self, view: LiveView, stream: Any) -> None:
        self.view, self.stream, self.rest = view, stream, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self.view.write(self, text)
        return len(text)


def _handlers() -> Iterator[logging.StreamHandler]:
    """The handlers of all loggers that write to a stream."""
    known = [logging.root, *logging.root.manager.loggerDict.values()]
    for logger in known:
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler):
                yield handler
