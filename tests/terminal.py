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

    def press(self, key: str) -> None:
        os.write(self._fd, key.encode())

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
        plain = [re.sub(r"\x1b\[[\d;]*m", "", line).rstrip() for line in self.coloured]
        return [line for line in plain if line]

    @property
    def coloured(self) -> list[str]:
        """All lines of the screen, with the sequences that colour them."""
        lines, y = [""], 0
        for token in TOKEN.finditer(self.output.rpartition("\x1b[2J")[2]):
            number, code = token.groups()
            if token[0] == "\n":
                y += 1
                lines += [""] * (y == len(lines))
            elif code == "A":
                y = max(0, y - int(number or 1), len(lines) - self._height)
            elif code == "K":
                lines[y] = ""
            elif code in ("m", None) and token[0] != "\r":  # a line is erased before it is written
                lines[y] += token[0]
        return lines[-self._height :]

    @property
    def cursor_is_hidden(self) -> bool:
        shown = re.findall(r"\x1b\[\?25([hl])", self.output)
        return shown[-1:] == ["l"]
