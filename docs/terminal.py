"""Makes docs/terminal.svg: a sweep's terminal, by running one in a pseudo-terminal.

.venv/bin/python docs/terminal.py        # two minutes on two idle cores
"""

import io
import os
import re
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.terminal import Terminal  # noqa: E402


def terminal(output: Path, width: int = 110, height: int = 22) -> None:
    """Draws the screen of `sweeps/mixture.py` when three of its eight trials have ended."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "sweeps" / "mixture.py"), "--num-trials", "8"]
        command += ["--output-dir", folder]
        shown = Terminal(lambda: os.execv(command[0], command), width, height)
        shown.wait_for("3 of 8 trials ended", "·  4/9  ", seconds=600)
        screen = "\n".join(shown.coloured).rstrip()
        for _ in range(2):
            os.kill(shown.pid, signal.SIGINT)
        shown.end()
    drawn = Console(record=True, width=width, file=io.StringIO(), legacy_windows=False)
    drawn.print(Text.from_ansi(screen), soft_wrap=True)
    picture = drawn.export_svg(title="python sweeps/mixture.py --num-trials 8")
    output.write_text(re.sub(r"@font-face \{.*?\}", "", picture, flags=re.S))  # of another server


if __name__ == "__main__":
    terminal(ROOT / "docs" / "terminal.svg")
