"""What a resume finds on disk: the newest whole checkpoint of a trial that was running."""

import contextlib
import json

import pytest

from tests.audit import audit
from tests.integration.harness import kill_when, wait_for_death

pytestmark = pytest.mark.versions

EPOCHS = 12


def whole_checkpoints(toy):
    """{epoch: folder} of the trial's checkpoints that can be read to their end, oldest first."""
    found = {}
    for folder in sorted((toy.runs / toy.name / "00000").glob("checkpoint_*")):
        with contextlib.suppress(OSError, ValueError):
            epoch, again = json.loads((folder / "epoch.json").read_text())
            if epoch == again and json.loads((folder / "metrics.json").read_text()):
                found[epoch] = folder
    return found


def damage(checkpoint, file):
    """A bit flips: in one file or the other, and both can still be read as JSON."""
    flipped = bytearray((checkpoint / file).read_bytes())
    digit = next(i for i, byte in enumerate(flipped) if chr(byte) in "23456789")
    flipped[digit] ^= 1
    (checkpoint / file).write_bytes(flipped)


@pytest.mark.slow
def test_a_killed_trial_goes_on_from_the_newest_whole_checkpoint(toy):
    options = ("--num-trials", "1", "--epochs", str(EPOCHS))
    toy.env["TOY_SECONDS"] = "0.5"

    def kill_after(epoch, *options):
        """Kills the driver, awaits the trial's end; what was trained so far, and is whole."""
        kill_when(toy, lambda: toy.epochs()[0, epoch], *options)
        wait_for_death(toy.starts()[-1][2])
        whole = whole_checkpoints(toy)
        assert len(whole) >= 2
        return toy.epochs(), whole

    def trained(before):
        """The epochs that were trained since."""
        return sorted(epoch for _, epoch in (toy.epochs() - before).elements())

    # The newest is whole.
    before, whole = kill_after(4, *options)
    newest = max(whole)
    after, whole = kill_after(newest + 3, "--resume")
    assert trained(before) == list(range(newest + 1, max(e for _, e in after) + 1))

    # The newest is damaged: the one before it.
    before, (*_, previous, newest) = after, whole
    damage(whole[newest], "metrics.json")
    after, whole = kill_after(newest + 2, "--resume")
    assert trained(before) == list(range(previous + 1, max(e for _, e in after) + 1))
    assert toy.epochs()[0, newest] == before[0, newest] + 1, "the damaged one's epoch, once more"

    # All are damaged: the beginning.
    before = after
    for checkpoint in whole.values():
        damage(checkpoint, "epoch.json")
    toy.env["TOY_SECONDS"] = "0.02"
    toy.run("--resume")
    assert trained(before) == list(range(1, EPOCHS + 1))
    assert audit(toy, 1) == {"00000": "COMPLETE"}
