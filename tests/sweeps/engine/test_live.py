"""The live view: on a real terminal, without one, and under signals; and the sweep's log."""

import logging
import os
import re
import signal
import sys
import time
import warnings

import pytest
from rich.text import Text

from ali.errors import UserError
from ali.output import lossy_output
from sweeps.engine import live
from sweeps.engine.live import LiveView
from sweeps.engine.progress import say
from sweeps.engine.shutdown import GracefulShutdown
from tests.terminal import Terminal


def view(width, height):
    return [Text("the view " + "=" * (width - 20)), Text(f"{width}x{height}", "cyan")]


def shows(log, *steps):
    """A function that shows the view around steps, each followed by a few refreshes."""

    def function():
        live.REFRESH_SECONDS = 0.05
        with LiveView(log) as shown, shown.show(view):
            for step in steps:
                step()
                time.sleep(0.3)
        print("afterwards")

    return function


def forever():
    time.sleep(30)


@pytest.fixture
def log(tmp_path):
    return tmp_path / "sweep.log"


def noise():
    """All that may come from libraries while the view is there."""
    logging.getLogger("of.a.library").warning("a record")
    sys.stderr.write(warnings.formatwarning("a warning", UserWarning, "file.py", 1))
    print("no end of line", end="")
    print(" until here")
    sys.stderr.write("two\nlines\n")


def test_lines_stand_above_the_view_which_is_gone_at_the_end(log):
    terminal = Terminal(shows(log, lambda: say("first"), lambda: say("second"), forever))
    terminal.wait_for("second", "100x24")
    assert [line[9:] for line in terminal.screen[:-2]] == ["first", "second"]
    assert terminal.screen[-2:] == ["the view " + "=" * 80, "100x24"]
    os.kill(terminal.pid, signal.SIGKILL)
    assert terminal.end() == -signal.SIGKILL and "\x1b[?25l" not in terminal.output

    terminal = Terminal(shows(log, lambda: say("third")))
    assert terminal.end() == 0 and not terminal.cursor_is_hidden
    first, second = terminal.screen
    assert first.endswith("third") and second == "afterwards"
    told = log.read_text().splitlines()
    assert all(re.match(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in told)
    last = ["the view " + "=" * 80, f"100x{live.KEPT_LINES}"]
    assert [line[20:] for line in told] == ["first", "second", "third", *last]


def test_what_libraries_print_does_not_tear_it(log):
    made_before = logging.StreamHandler(sys.__stderr__)

    def function():
        made_before.setStream(sys.stderr)
        logging.getLogger("of.a.library").addHandler(made_before)
        return shows(log, noise, forever)()

    terminal = Terminal(function)
    terminal.wait_for("lines", "100x24")
    *above, first, second = terminal.screen
    assert (first[:8], second) == ("the view", "100x24")
    assert above[:2] == ["a record", "file.py:1: UserWarning: a warning"]
    assert above[-3:] == ["no end of line until here", "two", "lines"]
    os.kill(terminal.pid, signal.SIGKILL)
    terminal.end()


def test_a_terminal_that_becomes_narrow_and_wide_again(log):
    terminal = Terminal(shows(log, lambda: say("an event"), forever))
    terminal.wait_for("an event")
    for width, height in ((40, 10), (120, 30)):
        terminal.resize(width, height)
        terminal.wait_for("an event", f"{width}x{height}")
        event, first, second = terminal.screen
        assert event.endswith("an event") and len(first) < width and second == f"{width}x{height}"
    os.kill(terminal.pid, signal.SIGKILL)
    terminal.end()


def test_without_colours_and_without_escape_sequences(log):
    terminal = Terminal(shows(log, lambda: say("event")), NO_COLOR="1")
    assert terminal.end() == 0 and "100x24" in terminal.output
    assert "\x1b[3" not in terminal.output
    terminal = Terminal(shows(log, lambda: say("event")), TERM="dumb")
    assert terminal.end() == 0
    assert "\x1b" not in terminal.output and "100x24" not in terminal.output
    assert [line[-10:].lstrip("0123456789: ") for line in terminal.screen] == [
        "event",
        "afterwards",
    ]


def test_without_a_terminal_lines_are_printed_as_they_come(log, capsys):
    with LiveView(log) as shown, shown.show(view):
        say("event")
        assert capsys.readouterr().out.endswith("event\n")
    assert capsys.readouterr().out == ""
    assert [line[20:28] for line in log.read_text().splitlines()] == [
        "event",
        "the view",
        "100x500",
    ]


def test_a_reader_that_goes_away_costs_no_line_of_the_log(log):
    reading, writing = os.pipe()
    os.close(reading)  # `| head`
    before = sys.stdout
    sys.stdout = open(writing, "w")  # noqa: SIM115
    try:
        with lossy_output(), LiveView(log):
            for i in range(3):
                print(i, flush=True)
    finally:
        sys.stdout, gone = before, sys.stdout
        with pytest.raises(BrokenPipeError):
            gone.close()
    assert [line[20:] for line in log.read_text().splitlines()] == ["0", "1", "2"]


def test_the_first_ctrl_c_is_told_above_it_and_the_second_below(log):
    def function():
        live.REFRESH_SECONDS = 0.05
        with (
            LiveView(log) as shown,
            GracefulShutdown("again", say=shown.urgent) as shutdown,
            shown.show(view),
            shutdown.postponed(),
        ):
            time.sleep(30)

    terminal = Terminal(function)
    terminal.wait_for("100x24")
    os.kill(terminal.pid, signal.SIGINT)
    terminal.wait_for("stopping; press Ctrl-C again to stop at once", "100x24")
    assert terminal.screen[0].startswith("stopping") and terminal.screen[-1] == "100x24"
    os.kill(terminal.pid, signal.SIGINT)
    assert terminal.end() == 130 and not terminal.cursor_is_hidden
    assert terminal.screen[-1] == "stopped at once; resume with: again"
    assert [line[20:28] for line in log.read_text().splitlines()] == ["stopping", "stopped "]


def test_a_view_that_fails_leaves_the_lines(log):
    def function():
        live.REFRESH_SECONDS = 0.05
        with LiveView(log) as shown, shown.show(lambda width, height: [Text(1 // (height - 24))]):
            say("event")
            time.sleep(0.5)
            say("another")

    terminal = Terminal(function)
    assert terminal.end() == 1  # the last view, for the log, fails as well
    assert not terminal.cursor_is_hidden
    assert [line[9:] for line in terminal.screen if "Error" not in line] == ["event", "another"]


def test_a_log_that_is_no_file_is_refused(tmp_path):
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link or no file"):
        LiveView(tmp_path / "log")
