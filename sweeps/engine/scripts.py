"""The commands that are printed: they run when pasted into a fresh shell in the same folder."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from ali.cli import command

_SCRIPTS = Path(__file__).resolve().parents[1]


def script_command(name: str, *arguments: object) -> str:
    """A command that runs one of the project's scripts, such as "best.py"."""
    return _command(_SCRIPTS / name, *arguments)


@dataclass
class Arguments:
    """Whether this process has read its command line, so that its script takes --resume."""

    are_read: bool = False


arguments = Arguments()


def resume_command(*found_by: object) -> str:
    """How the sweep of this process is resumed; `found_by`: arguments that name it."""
    if arguments.are_read:
        return running_command(*found_by, "--resume")
    return "resume=True among its options"


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
