"""The commands that are printed: they run when pasted into a fresh shell in the same folder."""

from __future__ import annotations

import sys
from pathlib import Path

from ali.cli import command

_SCRIPTS = Path(__file__).resolve().parents[1]


def script_command(name: str, *arguments: object) -> str:
    """A command that runs one of the project's scripts, such as "best.py"."""
    return _command(_SCRIPTS / name, *arguments)


def is_interactive() -> bool:
    """Whether this process is a notebook or a Python prompt, which no command repeats."""
    return "ipykernel" in sys.modules or hasattr(sys, "ps1")


def running_command(*arguments: object) -> str:
    """A command that runs the script of this process, with other arguments."""
    return _command(Path(sys.argv[0]).resolve(), *arguments)


def running_script() -> str | None:
    """The script of this process, as `script_command` takes it; None: there is none."""
    script = Path(sys.argv[0]).resolve()
    if not script.is_file():
        return None
    return script.name if script.parent == _SCRIPTS else str(script)


def here(path: Path) -> Path:
    """A path as it is written in the working folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _command(script: Path, *arguments: object) -> str:
    return command(here(script), *arguments)
