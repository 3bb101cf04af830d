"""The tag of a trial's run that tells which records MLflow lacks."""

import json

import pytest

from sweeps.engine import tracking
from sweeps.engine.endings import Ending, EndState
from tests.integration.harness import image, lost

pytestmark = pytest.mark.versions

DONE = Ending(EndState.COMPLETED, "done")


def test_a_process_adds_to_the_lost_records_that_another_has_told(local, monkeypatch):
    """And takes away those that it delivers, of whatever process."""
    client, to = local
    tracking.open_trial(client, to, "00000")
    first = tracking.TrialRun(to, "00000", {}, outage_seconds=0)
    first.open()
    deliver = tracking.TrialRun._log_pictures

    def lose(self, epoch, *others):
        if (self, epoch) != (first, 2):
            raise ConnectionError("the artifact store is full")
        deliver(self, epoch, *others)

    monkeypatch.setattr(tracking.TrialRun, "_log_pictures", lose)
    second = tracking.TrialRun(to, "00000", {}, outage_seconds=0)
    for epoch in (1, 2, 3):
        second.epoch({"epoch": epoch, "val_error": 0.5}, image())
    second.queue.close()
    assert lost(client, to).endswith("it lacks pictures of 00000 (3 epochs)")
    for epoch in (2, 4):
        first.epoch({"epoch": epoch, "val_error": 0.5}, image())
    first.queue.close()
    lacks = json.loads(tracking.find_trial(client, to, "00000").data.tags["missing"])
    assert lacks == {"pictures": "1,3-4"}


def test_whatever_the_number_of_lost_records_the_tag_never_says_that_none_are(local):
    """MLflow cuts a tag off at 8000 characters; a list of 1,600 epochs was longer."""
    client, to = local
    tracking.open_trial(client, to, "00000")
    run = tracking.TrialRun(to, "00000", {})
    told = "MLflow did not take all records of the trials: it "
    for kind, epochs, lacks in (
        ("pictures", range(1, 6476), "lacks pictures of 00000 (6475 epochs)"),
        ("metrics", range(1, 6476, 2), "may lack any records of 00000"),
    ):
        for epoch in epochs:
            run._missing.add(kind, epoch)
        run.tell_missing()
        assert run.queue.flush(60) and lost(client, to) == told + lacks
    for epoch in range(1, 6476):
        run._missing.delivered("metrics", epoch)
    run.queue.close()
    assert lost(client, to) == told + "lacks pictures of 00000 (6475 epochs)"
    cut_off = json.dumps({"metrics": list(range(1, 2000))})  # by an earlier version
    client.set_tag(run.run().info.run_id, "missing", cut_off)
    assert lost(client, to) == told + "may lack any records of 00000"
    tracking.end_trial(client, to, "00000", DONE, {1: 0.5})
    lacks = "lacks metrics of 00000 (1 epoch), and it may lack any records of 00000"
    assert lost(client, to) == told + lacks
