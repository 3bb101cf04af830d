"""What the driver does at a trial's events, with a storage that is away."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from pyarrow import fs

from ali.errors import UserError
from sweeps.engine.cluster import TrialResources
from sweeps.engine.endings import Ending, EndState
from sweeps.engine.mirror import JournalMirror
from sweeps.engine.options import Options
from sweeps.engine.progress import Progress
from sweeps.engine.storage import Storage
from sweeps.engine.tracking.schema import TrackingContext

TRIAL = SimpleNamespace(trial_id="00000")


@dataclass(frozen=True)
class AwayOnce(Storage):
    """Raises at the first question."""

    questions: list = field(default_factory=list)

    def checkpoints(self, trial_id):
        self.questions.append(trial_id)
        if len(self.questions) == 1:
            raise UserError("cannot read the bucket: no route")
        return super().checkpoints(trial_id)


@pytest.fixture
def progress(study, point, tmp_path):
    """After a trial with a checkpoint of four bytes, in a storage that is away at first."""
    study.ask(point)
    folder = tmp_path / "s" / "00000" / "checkpoint_000000"
    folder.mkdir(parents=True)
    (folder / "state").write_bytes(b"1234")
    storage = AwayOnce(fs.LocalFileSystem(), str(tmp_path), "s", remote=False)
    options = Options(name="s", output_dir=tmp_path, num_trials=2, outage_seconds=0)
    to = TrackingContext("file:///nowhere", "0", "s", "parent", "val_error")
    resources = TrialResources(1, 0, 1, 1)
    mirror = JournalMirror(storage, "it", tmp_path / "journal")
    made = Progress(options, study, to, resources, mirror, lambda: to)
    yield made
    made.close()


def test_the_size_of_checkpoints_is_told_once_the_storage_answers(progress, capsys):
    for _ in range(2):
        progress.on_checkpoint(0, [], TRIAL, None)
    assert capsys.readouterr().out.count("checkpoints: ") == 1


def test_checkpoints_that_could_not_be_deleted_go_when_the_next_trial_ends(
    progress, study, point, tmp_path
):
    left = tmp_path / "s" / "00000" / "checkpoint_000000"
    study.tell(0, Ending(EndState.FAILED, "a bug"), None)
    progress.on_trial_complete(0, [], TRIAL)
    assert left.exists()
    study.ask(point)
    study.tell(1, Ending(EndState.FAILED, "a bug"), None)
    progress.on_trial_complete(0, [], SimpleNamespace(trial_id="00001"))
    assert not left.exists()
