"""The sweep's front page in a real MLflow: interruptions, kills, outages, neighbours; no Ray."""

import os
import shutil
import signal
import time
from dataclasses import replace

import optuna
import pytest
from mlflow import MlflowClient
from PIL import Image

from sweeps.engine import front_page, tracking
from sweeps.engine.endings import Ending, EndState
from sweeps.engine.front_page import FrontPage
from sweeps.engine.options import Options
from sweeps.engine.reporting import find
from sweeps.engine.retry import is_temporary
from sweeps.engine.tracking.schema import NOTE
from tests.integration.harness import Server
from tests.sweeps.engine.reporting.sweep import trial

pytestmark = pytest.mark.versions

STOPPED = Ending(EndState.INTERRUPTED, "the sweep was stopped")


class Recorded:
    """A sweep in MLflow, a study in memory, and its front page."""

    def __init__(self, uri, folder, name, values):
        self.client = tracking.connect(uri)
        self.experiment = tracking.experiment_id(self.client, folder)
        parent = tracking.start_sweep(self.client, self.experiment, name, "val_error", {})
        self.to = tracking.TrackingContext(uri, self.experiment, name, parent, "val_error")
        self.options = Options(name=name, num_trials=3, epochs=4, output_dir=folder)
        self.study = optuna.create_study()
        self.page = FrontPage(self.options, self.study, self.to)
        for value in values:
            self.add(value)

    def add(self, value):
        """One more trial that has reached its full budget."""
        number = len(self.study.trials)
        one = trial(number, EndState.COMPLETED, value)
        self.study.add_trial(one)
        end, config = Ending(EndState.COMPLETED, "done"), one.user_attrs["config"]
        to, name = self.to, f"{number:05d}"
        tracking.end_trial(self.client, to, name, end, one.intermediate_values, config)
        tracking.set_best_trials(self.client, to, [f"{n:05d}" for n in range(number + 1)])

    @property
    def note(self):
        return self.client.get_run(self.to.parent_run_id).data.tags.get(NOTE, "")

    def files(self, folder):
        """The files of the page, downloaded."""
        self.client.download_artifacts(self.to.parent_run_id, "", str(folder))
        return {path.name: path for path in folder.rglob("*.*")}


@pytest.fixture
def uri(tmp_path, database):
    shutil.copy(database, tmp_path)
    return tracking.default_uri(tmp_path)


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "time-out"
        time.sleep(0.05)


def test_the_page_of_a_sweep_that_was_stopped_says_so_until_it_goes_on(uri, tmp_path):
    swept = Recorded(uri, tmp_path, "s", [0.3])
    swept.page.update(full=False)
    assert "1 of 3 trials ended (" in swept.note
    swept.add(0.2)
    tracking.end_run(swept.client, swept.to.parent_run_id, STOPPED)
    swept.page.interrupted(0)  # in the background: a scheduler may kill it
    wait_until(lambda: "2 of 3 trials ended; interrupted: the sweep was stopped (" in swept.note)
    tracking.start_sweep(swept.client, swept.experiment, "s", "val_error", {})
    swept.page.update(full=False)
    assert "2 of 3 trials ended (" in swept.note


def test_a_kill_while_the_page_is_written_costs_nothing(uri, tmp_path):
    swept = Recorded(uri, tmp_path, "s", [0.3, 0.2])
    swept.page.update(full=False)
    before = swept.note
    swept.add(0.1)
    if not (child := os.fork()):
        try:
            own = f"sqlite:///{tmp_path}/./mlflow.db"  # connections of its own
            page = FrontPage(swept.options, swept.study, replace(swept.to, uri=own))
            front_page.write_files = lambda folder, *_: (folder / "report.html").touch()
            MlflowClient.log_artifacts = killed_midway
            page.update()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    half = swept.files(tmp_path / "half")
    assert list(half) == ["report.html"] and "</html>" not in half["report.html"].read_text()
    assert swept.note == before, "and no link to half a report"

    FrontPage(swept.options, swept.study, swept.to).update()  # of the driver that resumes it
    whole = swept.files(tmp_path / "whole")
    assert "</html>" in whole["report.html"].read_text()
    pictures = [path for path in whole.values() if path.suffix == ".png"]
    assert len(pictures) >= 3 and all(Image.open(path).size[0] > 400 for path in pictures)
    assert "3 of 3 trials ended (" in swept.note and "[the whole report]" in swept.note


def killed_midway(client, run_id, folder):
    """In the place of MLflow's: half of the first file, as a copy that is cut off leaves it."""
    assert os.listdir(folder) == ["report.html"]
    client.log_text(run_id, "<!doctype html><html>", "report.html")
    os.kill(os.getpid(), signal.SIGKILL)


def test_two_sweeps_in_one_database_have_pages_of_their_own(uri, tmp_path):
    one = Recorded(uri, tmp_path, "one", [0.3, 0.25])
    two = Recorded(uri, tmp_path, "two", [0.1])
    for swept in (one, two, one):
        swept.page.update(full=False)
    assert r"trial 00001, val\_error 0.2500" in one.note and "2 of 3 trials ended" in one.note
    assert r"trial 00000, val\_error 0.1000" in two.note and "1 of 3 trials ended" in two.note
    ids = {run.info.run_id for run in tracking.find_runs(two.client, two.experiment, sweep="two")}
    assert any(run in two.note for run in ids) and not any(run in one.note for run in ids)
    assert "viewStateShareKey=one/best" in one.note
    assert "/best" not in two.note, "one trial has no other beside it"


@pytest.mark.long
def test_a_server_that_is_away_costs_an_update_and_no_sweep(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(front_page, "FIRST_WORDS", 0.2)
    monkeypatch.setattr(front_page, "SHARE_WORDS", 1.0)
    server = Server(tmp_path)
    server.start()
    try:
        swept = Recorded(server.uri, tmp_path, "s", [0.3])
        with swept.page.kept():
            wait_until(lambda: "1 of 3 trials ended" in swept.note)
            swept.add(0.2)
            server.stop()
            time.sleep(2)
            with pytest.raises(Exception) as away:
                swept.page.update(full=False)
            assert is_temporary(away.value)
            server.start()
            wait_until(lambda: "2 of 3 trials ended" in swept.note)
        swept.add(0.1)
        found = find(swept.options, swept.study, swept.client, swept.experiment)
        server.stop()
        with pytest.raises(Exception) as away:  # as the driver's Retry sees it
            swept.page.finish(found)
        assert is_temporary(away.value)
        server.start()
        swept.page.finish(found)
        assert "3 of 3 trials ended" in swept.note and "[the whole report]" in swept.note
    finally:
        server.stop()
