"""The commands that are printed: they run when pasted into a fresh shell in the same folder."""

from __future__ import annotations

import sys
from pathlib import Path

from ali.cli import command

_SCRIPTS = Path(__file__).resolve().parents[1]


def script_command(name: str, *arguments: object) -> str:
    """A command that runs one of the project's scripts, such as "best.py"."""
    return _command(_SCRIPTS / name, *arguments)


def running_command(*arguments: object) -> str:
    """A command that runs the script of this process, with other arguments."""
    return _command(Path(sys.argv[0]).resolve(), *arguments)


def ui_command(uri: str) -> str:
    """A command that serves the MLflow UI on a tracking store."""
    return command("-m", "mlflow", "ui", "--backend-store-uri", uri, "--workers", "1")


def _command(script: Path, *arguments: object) -> str:
    here = Path.cwd()
    return command(script.relative_to(here) if script.is_relative_to(here) else script, *arguments)
