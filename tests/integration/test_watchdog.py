"""The watchdog: a trial without results loses its process; what only seems to hang does not."""

import json
import signal
import time

import pytest

from tests.audit import audit
from tests.integration.harness import EPOCHS, is_running, wait_for

pytestmark = pytest.mark.versions

ALL = ("--grace-epochs", str(EPOCHS))  # no trial is stopped early


@pytest.mark.slow
def test_a_stopped_trial_is_killed_and_goes_on_and_a_slow_one_is_left_alone(toy):
    toy.env.update(TOY=json.dumps({"1": "stop-once@3"}), TOY_SECONDS="3")
    out = toy.run("--num-trials", "2", "--hang-seconds", "15", *ALL)
    assert audit(toy, 2) == {"00000": "COMPLETE", "00001": "COMPLETE"}
    first, second = [(epoch, pid) for seed, epoch, pid in toy.starts() if seed == 1]
    assert (first[0], second[0]) == (0, 2), "from the checkpoint of the epoch before"
    assert first[1] != second[1] and not is_running(first[1])
    assert [toy.epochs()[1, epoch] for epoch in range(1, EPOCHS + 1)] == [1, 1, 2, 1, 1, 1]
    assert out.count("no result for 15 s (--hang-seconds)") == 1
    # 6 epochs of 3 s: trial 0 as a whole took longer than 15 s, but none of its epochs did.
    assert [seed for seed, _, _ in toy.starts()].count(0) == 1


@pytest.mark.long
def test_a_paused_driver_kills_nobody(toy):
    """Ctrl-Z, or a laptop's sleep: the time that the driver stood still is no trial's silence."""
    toy.env["TOY_SECONDS"] = "0.5"
    process = toy.start("--num-trials", "2", "--hang-seconds", "20", *ALL)
    wait_for(lambda: toy.epochs()[0, 1] and toy.epochs()[1, 1], process)
    process.send_signal(signal.SIGSTOP)
    paused = toy.epochs().total()
    time.sleep(25)
    assert toy.epochs().total() <= paused + 2 * 2, "trials wait for their driver"
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    audit(toy, 2)
    assert "no result for" not in out
    assert len(toy.starts()) == 2 and set(toy.epochs().values()) == {1}
