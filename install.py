"""Installs into the virtual environment that runs it, and says what, and how far it is.

    .venv/bin/python install.py -e .

`make` calls it; the arguments are those of `pip install`. On a terminal one line tells what is
being done, elsewhere a line every 15 seconds. What pip has printed is in pip.log in the
environment. At the end every file of every package is looked for, since pip takes a package for
installed that an interrupted install has left incomplete. It uses the standard library alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

LARGE_MB = 10.0  # packages that get a line of their own
BEAT_SECONDS = 15.0
ENVIRONMENT = Path(sys.prefix)
LOG, TEMPORARY, LOCK = (ENVIRONMENT / name for name in ("pip.log", "pip.tmp", "pip.lock"))
UNITS = {"kB": 1e-3, "MB": 1.0, "GB": 1e3}


class Progress:
    """What pip is doing, from the lines that it prints."""

    def __init__(self) -> None:
        self._began, self._beat = time.monotonic(), time.monotonic()
        self._terminal, self._width = sys.stdout.isatty(), shutil.get_terminal_size().columns
        self.doing, self._file, self._size = "asking for packages", "", 0.0
        self._count, self._mb = 0, 0.0
        self._unpacking: set[str] = set()

    def read(self, line: str) -> None:
        """A line of pip's."""
        if found := re.match(
            r"\s*(Downloading|Using cached) (\S+\.(?:whl|gz|zip)) \((.*) (\w+)\)", line
        ):
            how, file, number, unit = found.groups()
            self._count, self._file = self._count + 1, file.rpartition("/")[2]
            self._size = float(number) * UNITS.get(unit, 0.0)
            self._mb += self._size
            name, version = self._file.split("-")[:2]
            self.doing = f"{how.lower()} {name} {version}"
            if self._size >= LARGE_MB:
                self.say(f"{self.doing} ({self._size:,.0f} MB)")
        elif found := re.match(r"Installing collected packages: (.*)", line):
            self._unpacking, self._file = set(map(_normal, found[1].split(", "))), ""
            self.say(f"{self._count} packages fetched, {self._mb:,.0f} MB; unpacking them")
        elif found := re.match(r"\s*(Collecting|Preparing|Building|Installing) (.*)", line):
            self.doing, self._file = f"{found[1].lower()} {found[2].partition(' (')[0]}", ""

    def state(self) -> str:
        """What is being done at this moment."""
        if self._unpacking:
            done = {_normal(name) for name in os.listdir(sysconfig.get_path("purelib"))}
            there = sum(name in done for name in self._unpacking)
            return f"unpacking: {there} of {len(self._unpacking)} packages"
        if self._file and (parts := list(TEMPORARY.glob(f"*/{self._file}"))):
            with contextlib.suppress(OSError):
                return f"{self.doing}: {parts[0].stat().st_size / 1e6:,.0f} of {self._size:,.0f} MB"
        return self.doing

    def beat(self, ended: threading.Event) -> None:
        """Shows the state until it has ended."""
        while not ended.wait(0.5):
            if self._terminal:
                line = f"{self._clock()}  {self.state()}"[: self._width - 1]
                print(f"\r{line}\x1b[K", end="", flush=True)
            elif time.monotonic() - self._beat > BEAT_SECONDS:
                self.say(self.state())

    def say(self, text: str) -> None:
        """A line that stays."""
        self._beat = time.monotonic()
        print("\r\x1b[K" * self._terminal + f"{self._clock()}  {text}", flush=True)

    def _clock(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        return f"{minutes:3}:{seconds:02}"


def pip(*arguments: str) -> int:
    """Runs `pip install` and shows its progress; returns its exit code."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
    command += ["--progress-bar", "off", *arguments]
    progress, ended, errors = Progress(), threading.Event(), []
    shutil.rmtree(TEMPORARY, ignore_errors=True)
    TEMPORARY.mkdir()
    beat = threading.Thread(target=progress.beat, args=(ended,), daemon=True)
    try:
        with LOG.open("a") as log, subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "TMPDIR": str(TEMPORARY), "PYTHONUNBUFFERED": "1"},
        ) as process:  # fmt: skip
            beat.start()
            for line in process.stdout or ():
                log.write(line)
                progress.read(line)
                errors += [line] * line.startswith("ERROR")
    finally:
        ended.set()
        beat.join()
        shutil.rmtree(TEMPORARY, ignore_errors=True)
    if process.returncode:
        progress.say("pip failed:")
        print("".join(errors[-5:]), end="", file=sys.stderr)
    else:
        progress.say("done")
    return process.returncode


def incomplete() -> list[str]:
    """Packages that lack files, as requirements of the same versions."""
    found = []
    for package in importlib.metadata.distributions(path=[sysconfig.get_path("purelib")]):
        files = package.files or [None]  # None: the list of its files is missing, too
        if not all(f and (f.suffix == ".pyc" or os.path.exists(f.locate())) for f in files):
            found.append(f"{package.metadata['Name']}=={package.version}")
    return found


def _normal(name: str) -> str:
    """A package's name, by which it is found: of foo_bar-1.2.dist-info and Foo.Bar."""
    name = re.sub(r"-[^-]*\.(dist|egg)-info$", "", name)
    return re.sub(r"[-_.]+", "-", name).lower()


def main(arguments: list[str]) -> int:
    with LOCK.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another install is under way in this environment: waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        print(f"installing {' '.join(arguments)} into {ENVIRONMENT}", flush=True)
        code = pip(*arguments)
        if not code and (broken := incomplete()):
            print(f"incomplete, from an earlier install: {', '.join(broken)}", flush=True)
            code = pip("--ignore-installed", "--no-deps", *broken)
    if code:
        print(
            f"nothing is lost: run make again to go on; pip's output is in {LOG}", file=sys.stderr
        )
    return code


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("\nstopped; run make again to go on", file=sys.stderr)
        sys.exit(130)
