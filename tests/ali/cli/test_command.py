"""Commands that are printed for the user to paste."""

import shlex
import subprocess
import sys
from pathlib import Path

from ali.cli import command
from tests.paths import ROOT


def pasted(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a line in a shell that has no environment: no virtual one, no PATH."""
    shell = ["env", "-i", "sh", "-c", line]
    return subprocess.run(shell, cwd=folder, capture_output=True, text=True, timeout=120)


def test_command_runs_in_a_fresh_shell():
    ended = pasted(command("-m", "ali", "train", "--help"), ROOT)
    assert ended.returncode == 0, ended.stderr
    assert "--output-dir" in ended.stdout


def test_arguments_are_quoted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = "a name; with 'quotes' $HOME"
    ended = pasted(command("-c", "import sys; print(sys.argv[1])", odd), tmp_path)
    assert ended.stdout == odd + "\n"
    assert shlex.split(command("-m", "ali", tmp_path / odd))[1:] == [
        "-m",
        "ali",
        f"{tmp_path}/{odd}",
    ]


def test_an_interpreter_below_the_current_folder_is_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    assert command("x.py") == ".venv/bin/python x.py"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert command("x.py") == "./python x.py"  # without ./ the shell would search PATH
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    assert command("x.py") == "/usr/bin/python3 x.py"
