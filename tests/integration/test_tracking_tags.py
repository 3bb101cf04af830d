"""What is read from a run's tags, also of a sweep that an earlier version ran."""

import pytest

from sweeps.engine import tracking
from sweeps.engine.endings import Ending, EndState
from sweeps.engine.tracking import runs

pytestmark = pytest.mark.versions


def test_a_stopped_trial_of_an_earlier_version_is_killed_no_more_and_ended_when_it_did(local):
    client, to = local
    run = tracking.open_trial(client, to, "00000")
    stopped = Ending(EndState.STOPPED_EARLY, "its chance to end among the best is small")
    tracking.end_trial(client, to, "00000", stopped)
    client.set_terminated(run.info.run_id, "KILLED", end_time=12345)
    tracking.end_trial(client, to, "00000", stopped)
    info = tracking.find_trial(client, to, "00000").info
    assert (info.status, info.end_time) == ("FINISHED", 12345)


def test_options_and_data_are_read_from_tags_or_as_an_earlier_version_wrote_them(local):
    client, to = local
    earlier = tracking.require_sweep(client, to.experiment, "s")
    assert runs.options_of(earlier) == {"epochs": "3"}
    options = {"epochs": 3, "num_trials": 9}
    tracking.start_sweep(client, to.experiment, "s", "val_error", {}, options=options)
    assert runs.options_of(tracking.require_sweep(client, to.experiment, "s")) == options
    run = tracking.open_trial(client, to, "00000")
    assert tracking.data_of(run) is None
    client.log_param(run.info.run_id, "data_fingerprint", "old")
    assert tracking.data_of(tracking.find_trial(client, to, "00000")) == "old"


def test_an_interval_is_written_where_it_differs(local):
    client, to = local
    tracking.open_trial(client, to, "00000")
    known = {}
    for text in ("0.1000 to 0.3000", "0.1000 to 0.2000"):
        runs.set_intervals(client, to, {"00000": text, "00009": "of no run"}, known)
        assert tracking.find_trial(client, to, "00000").data.tags["interval_95"] == text
    assert known == {"00000": "0.1000 to 0.2000"}
