"""The sweep's run in MLflow as its front page: its text, and how often it is written."""

import contextlib
import time
from types import SimpleNamespace

import pytest

from sweeps.engine import front_page
from sweeps.engine.front_page import Cadence, FrontPage, description, markdown
from sweeps.engine.reporting import findings
from sweeps.engine.reporting.table import Table
from sweeps.engine.tracking.schema import TrackingContext
from tests.sweeps.engine.reporting.sweep import sweep

TO = TrackingContext("sqlite:///none", "7", "shown", "parent", "val_error", {})
FILES = ["figures/importance.png", "figures/contact_sheet.jpg", "figures/history.png"]
FILES += ["contact_sheet.jpg", "report.html"]


def test_the_description_says_first_what_was_found_and_what_mattered():
    found = sweep()
    parts = description(found, TO, FILES, found.importance).split("\n\n")
    assert parts[0] == f"**{findings.verdict(found)[0]}**"
    assert parts[1].startswith("Importance: none can be told from chance in 14 trials")
    assert "14 of 15 trials ended" in parts[2] or "15 of 15 trials ended" in parts[2]
    assert "(#/experiments/7/runs/parent/artifacts/report.html?" in parts[2]
    assert "best two" not in parts[2], "no driver has said yet which they are"
    found.parent.data.tags["best_trials"] = '["00000", "00001"]'
    assert "runs?workflowType=machine_learning&viewStateShareKey=shown/best&" in description(
        found, TO, FILES
    )
    text = "\n".join(parts)
    assert "| [00000](#/experiments/7/runs/run00000?" in text
    pictures = [part for part in parts if "![" in part]
    assert len(pictures) == 3 and "importance" in pictures[0]
    assert "parent/artifacts/contact_sheet.jpg?" in pictures[1], "larger, by a click"


def test_a_long_description_loses_whole_parts_at_its_end(monkeypatch):
    monkeypatch.setattr(front_page, "NOTE_CHARACTERS", 900)
    text = description(sweep(), TO, FILES)
    assert len(text) <= 900 and text.startswith("**Not confirmed") and text.endswith("\n\n")


def test_text_in_a_table_is_text():
    table = Table("t", ("name", "value"), [("a|b_c*", "<b>")])
    assert markdown(table).splitlines()[-1] == r"| a\|b\_c\*&nbsp;&nbsp; | \<b> |"


@pytest.mark.parametrize(("least", "share"), [(0.0, 0.01), (5.0, 0.5)])
def test_the_next_update_is_due_when_this_one_is_a_small_share_of_the_time(least, share):
    cadence = Cadence(share, least)
    with cadence:
        time.sleep(0.02)
    assert cadence.due - time.monotonic() > max(least, 0.02 / share) - 0.1


def test_an_update_that_failed_is_tried_again_soon():
    """However long MLflow was waited for."""
    cadence = Cadence(0.001, 0.1)
    with contextlib.suppress(OSError), cadence:
        time.sleep(0.02)
        raise OSError("no answer")
    assert cadence.due - time.monotonic() <= 0.1


def test_the_shares_of_both_kinds_of_updates_are_less_than_a_hundredth():
    assert front_page.SHARE_WORDS + front_page.SHARE_FIGURES < 0.01


def test_what_cannot_be_drawn_costs_no_sweep_its_end(monkeypatch, capsys):
    """A full disk, too, which is no outage of MLflow's."""
    sent = {}
    client = SimpleNamespace(
        tracking_uri="", list_artifacts=lambda run, folder: [],
        set_tag=lambda run, key, value: sent.update({key: value}),
    )  # fmt: skip
    monkeypatch.setattr(front_page, "open_client", lambda uri: client)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(front_page, "write_files", full_disk)
    found = sweep()
    FrontPage(found.options, None, TO).finish(found)
    assert "lacks its figures: [Errno 28] No space left" in capsys.readouterr().out
    assert sent[front_page.NOTE].startswith("**Not confirmed: ")
