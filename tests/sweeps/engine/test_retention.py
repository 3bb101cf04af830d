"""Which checkpoints stay on disk."""

from types import SimpleNamespace

import pytest
from optuna.trial import TrialState
from pyarrow import fs

from sweeps.engine.endings import LOST, RETRIES
from sweeps.engine.mirror import JournalMirror
from sweeps.engine.retention import delete_checkpoints
from sweeps.engine.storage import Storage


def ended(number, value, state=TrialState.COMPLETE):
    values = {} if value is None else {1: value}
    return SimpleNamespace(
        number=number, value=value, state=state, user_attrs={}, intermediate_values=values
    )


def checkpoints(folder, trials, count=2):
    for number in range(trials):
        for index in range(count):
            path = folder / "s" / f"{number:05d}" / f"checkpoint_{index:06d}"
            path.mkdir(parents=True)
            (path / "state.json").write_text("x")


def mirror_of(folder):
    return JournalMirror(Storage.at(folder, "s"), "it", folder / "journal")


def left(folder):
    return sorted(str(p.relative_to(folder / "s")) for p in (folder / "s").glob("*/checkpoint_*"))


def test_the_last_of_each_of_the_best_stays(tmp_path):
    checkpoints(tmp_path, 4)
    pruned, failed = TrialState.PRUNED, TrialState.FAIL
    trials = [ended(0, 0.4), ended(1, 0.1, pruned), ended(2, 0.2), ended(3, None, failed)]
    kept = delete_checkpoints(mirror_of(tmp_path), trials, trials[2:3])
    assert [trial.number for trial in kept] == [2]
    assert left(tmp_path) == ["00002/checkpoint_000001"]


def test_a_better_trial_takes_the_place_of_one_that_was_kept(tmp_path):
    checkpoints(tmp_path, 3)
    mirror = mirror_of(tmp_path)
    first, second, third = ended(0, 0.4), ended(1, 0.3), ended(2, 0.3)
    kept = delete_checkpoints(mirror, [first, second], [second, first])
    kept = delete_checkpoints(mirror, [*kept, third], [second, third])
    assert [trial.number for trial in kept] == [1, 2]
    assert left(tmp_path) == ["00001/checkpoint_000001", "00002/checkpoint_000001"]


def test_a_trial_that_lost_its_workers_keeps_its_last_until_another_try_has_ended(tmp_path):
    checkpoints(tmp_path, 3)
    mirror, failed = mirror_of(tmp_path), TrialState.FAIL
    first, again, last = (ended(number, None, failed) for number in range(3))
    for one in (first, again):
        one.user_attrs |= LOST.to_result()
    again.user_attrs[RETRIES] = last.user_attrs[RETRIES] = 0
    kept = delete_checkpoints(mirror, [first], [])
    kept = delete_checkpoints(mirror, [*kept, again], [])
    assert left(tmp_path)[:2] == ["00000/checkpoint_000001", "00001/checkpoint_000001"]
    assert delete_checkpoints(mirror, [*kept, last], []) == [] == left(tmp_path)


def test_running_trials_are_left_alone(tmp_path):
    checkpoints(tmp_path, 2)
    delete_checkpoints(mirror_of(tmp_path), [ended(0, 0.4)], [ended(0, 0.4)])
    assert left(tmp_path) == [
        "00000/checkpoint_000001",
        "00001/checkpoint_000000",
        "00001/checkpoint_000001",
    ]


def test_nothing_is_deleted_before_the_bucket_knows_that_its_trial_has_ended(tmp_path):
    """On another machine it would be trained again from the beginning."""
    checkpoints(tmp_path, 1)
    (tmp_path / "journal").write_text("ended\n")
    away = [OSError("no route")]

    class Bucket(Storage):
        def write(self, name, content):
            if away:
                raise away.pop()
            assert left(tmp_path), "the journal comes first"
            super().write(name, content)

    bucket = Bucket(fs.LocalFileSystem(), str(tmp_path), "s", remote=True)
    mirror = JournalMirror(bucket, "it", tmp_path / "journal")
    with pytest.raises(OSError, match="no route"):
        delete_checkpoints(mirror, [ended(0, 0.4)], [])
    assert len(left(tmp_path)) == 2
    assert delete_checkpoints(mirror, [ended(0, 0.4)], []) == left(tmp_path) == []
    assert bucket.read("journal") == b"ended\n"
