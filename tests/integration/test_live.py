"""A whole sweep in a terminal: the view, Ctrl-C, and a resume."""

import os

import pytest

from tests.terminal import Terminal


@pytest.mark.long
def test_a_sweep_in_a_terminal_is_stopped_and_resumed(toy):
    toy.env["TOY_SECONDS"] = "0.5"

    def terminal(*options):
        command, env = toy.command(*options)
        env = {**env, "TERM": "xterm"}
        return Terminal(lambda: os.execve(command[0], command, env), width=80)

    first = terminal("--num-trials", "3", "--front-page")
    first.wait_for(" 2/6  0.", "best so far  0000", "left", seconds=120)
    first.press("\x03")
    first.wait_for("stopping; press Ctrl-C again to stop at once", seconds=60)
    assert first.end() == 130 and not first.cursor_is_hidden
    assert "stopped; resume with: " in first.output and "running" not in first.screen[-1]
    note = toy.parents()[0].data.tags["mlflow.note.content"]
    assert "trials ended; interrupted: the sweep was stopped (" in note and "figures" in note

    second = terminal("--resume")
    second.wait_for(" of 3 trials ended", seconds=120)
    assert second.end() == 0 and not second.cursor_is_hidden
    told = (toy.runs / "toy" / "sweep.log").read_text()
    assert told.count("sweep toy: 3 trials") == 2 and "Best trials of toy" in told
    assert " toy  3 of 3 trials ended  0 running\n" in told, "the view's last state"
