"""Files of pictures: MLflow's charts find them as if `log_image` had written them."""

import re
import shutil

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from sweeps.engine.tracking.pictures import write_pictures

PICTURE = np.random.default_rng(0).integers(0, 256, (300, 500, 3)).astype(np.uint8)
pytestmark = pytest.mark.versions


def names(folder):
    """Without what differs from call to call."""
    found = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    return sorted(re.sub(r"\+\d{13}\+[0-9a-f-]{36}", "+TIME+UUID", name) for name in found)


def test_names_are_those_of_log_image(tmp_path, monkeypatch):
    written, tags = tmp_path / "theirs", []

    def log_artifact(self, run_id, local, artifact_path=None):
        target = written / (artifact_path or "") / local.rpartition("/")[2]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(local, target)

    monkeypatch.setattr(MlflowClient, "log_artifact", log_artifact)
    monkeypatch.setattr(MlflowClient, "set_tag", lambda self, run, key, *_: tags.append(key))
    client = MlflowClient(f"sqlite:///{tmp_path}/none.db")
    client.log_image("run", PICTURE, key="worst/samples", step=3)
    write_pictures(tmp_path / "ours", {"worst/samples": PICTURE}, 3, 1795676871042)
    ours = [name for name in names(tmp_path / "ours") if name.startswith("images/")]
    assert names(written) == ours and len(ours) == 2
    assert tags == ["mlflow.loggedImages"]


def test_they_are_as_large_as_the_picture_and_the_same_when_written_again(tmp_path):
    for folder in ("one", "two"):
        write_pictures(tmp_path / folder, {"samples": PICTURE}, 12, 5)
    files = {p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.*")}
    assert files == {p.relative_to(tmp_path / "two") for p in (tmp_path / "two").rglob("*.*")}
    assert {Image.open(tmp_path / "one" / name).size for name in files} == {(500, 300)}
    shared = Image.open(tmp_path / "one" / "samples.png")
    np.testing.assert_array_equal(np.asarray(shared), PICTURE)
