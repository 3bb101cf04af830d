"""A terminal to run a function in, in a process of its own, and what stands on its screen."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from collections.abc import Callable

TOKEN = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+|\x1b")


class Terminal:
    """A pseudo-terminal of `width` by `height`, and a process forked into it that calls `function`.

    `screen` is what a person sees, blank lines left out.
    """

    def __init__(
        self, function: Callable[[], object], width: int = 100, height: int = 24, **env: str
    ) -> None:
        self.output = ""
        self.pid, self._fd = pty.fork()
        if not self.pid:
            code = 1
            with contextlib.suppress(BaseException):
                os.read(0, 1)  # until the terminal has its size
                for name in ("COLUMNS", "LINES", "NO_COLOR"):
                    os.environ.pop(name, None)
                os.environ.update({"TERM": "xterm-256color", **env})
                sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
                sys.stderr = sys.__stderr__ = open(2, "w", closefd=False)  # noqa: SIM115
                code = int(function() or 0)  # type: ignore[call-overload]
                sys.stdout.flush()
            os._exit(code)
        self.resize(width, height)
        settings = termios.tcgetattr(self._fd)
        settings[3] &= ~termios.ECHO
        termios.tcsetattr(self._fd, termios.TCSANOW, settings)
        os.write(self._fd, b"\n")

    def resize(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def wait_for(self, *texts: str, seconds: float = 20) -> None:
        """Until the screen shows all of these."""
        deadline = time.monotonic() + seconds
        while not all(text in "\n".join(self.screen) for text in texts):
            if time.monotonic() > deadline or not self._read():
                raise AssertionError(f"{texts} not in {self.screen}, of {self.output!r}")

    def end(self) -> int:
        """Reads to the end of the process; its exit code, negative after a signal."""
        while self._read():
            pass
        os.close(self._fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _read(self) -> bool:
        if select.select([self._fd], [], [], 0.5)[0]:
            try:
                content = os.read(self._fd, 65536)
            except OSError:  # the process has ended
                return False
            self.output += content.decode()
            return bool(content)
        return True

    @property
    def screen(self) -> list[str]:
        """The lines of the screen that are not blank, since it was cleared."""
        lines = self._lines(self.output.rpartition("\x1b[2J")[2])[-self._height :]
        return [line.rstrip() for line in lines if line.strip()]

    @property
    def cursor_is_hidden(self) -> bool:
        shown = re.findall(r"\x1b\[\?25([hl])", self.output)
        return shown[-1:] == ["l"]

    def _lines(self, text: str) -> list[str]:
        """What a terminal that is wide enough makes of this."""
        lines, x, y = [""], 0, 0
        for token in TOKEN.finditer(text):
            number, code = token.groups()
            if token[0] == "\r":
                x = 0
            elif token[0] == "\n":
                y += 1
                lines += [""] * (y == len(lines))
            elif code == "A":
                y = max(0, y - int(number or 1), len(lines) - self._height)
            elif code == "K":
                lines[y] = ""
            elif code is None:
                lines[y] = lines[y].ljust(x)[:x] + token[0] + lines[y][x + len(token[0]) :]
                x += len(token[0])
        return lines
