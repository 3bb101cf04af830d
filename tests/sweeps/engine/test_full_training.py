"""sweeps.engine.full_training: what it says about the data before it trains."""

from types import SimpleNamespace

from ali import data
from sweeps.engine.full_training import FullTraining, TrainingContext
from sweeps.engine.options import Location
from sweeps.engine.tracking.schema import TRIAL, TrackingContext
from tests.ali.data.conftest import config
from tests.ali.data.test_tiny_imagenet import write_tiny


def test_notes_are_of_the_test_files_too(tmp_path, monkeypatch):
    """Each once. Without them an unofficial test set would be taken for the official one."""
    monkeypatch.setenv("ALI_CACHE", str(tmp_path / "cache"))
    settings = config("tiny-imagenet", write_tiny(tmp_path / "files"))
    context = TrainingContext(
        location=Location(name="s", output_dir=tmp_path / "runs"),
        config=settings,
        trial=SimpleNamespace(data=SimpleNamespace(tags={TRIAL: "00000"})),
        to=TrackingContext("", "", "s", "", "val_error"),
        svms=1,
        checkpoint_every=1,
        workers=1,
        threads=None,
    )
    official = "not the official"
    assert FullTraining(context, data.load(settings)).notes == (
        f"tiny-imagenet: 90 images of 3 classes for train, {official} 100,000 of 200",
        f"tiny-imagenet: 12 images of 3 classes for test, {official} 10,000 of 200",
    )
