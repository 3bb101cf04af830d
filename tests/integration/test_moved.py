"""An output folder that was moved or copied: what is logged goes where it is now."""

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from ali.errors import UserError
from sweeps.engine.tracking import experiment_id
from sweeps.engine.tracking.moved import follow_move

pytestmark = pytest.mark.versions


@pytest.fixture
def before(database, tmp_path):
    """An output folder with a run, its artifact and a registered model."""
    folder = tmp_path / "run s"
    folder.mkdir()
    shutil.copy(database, folder)
    client = opened(folder)
    run = client.create_run(experiment_id(client, folder)).info
    files = folder / "artifacts" / run.run_id / "artifacts"
    files.mkdir(parents=True)
    (files / "one").write_text("1")
    client.create_registered_model("m")
    client.create_model_version("m", f"{run.artifact_uri}/model", run.run_id)
    follow(folder)
    return folder


def opened(folder):
    return MlflowClient(f"sqlite:///{folder}/mlflow.db", f"sqlite:///{folder}/mlflow.db")


def follow(folder, client=None):
    client = client or opened(folder)
    follow_move(client, experiment_id(client, folder), folder)


def check_is_whole(folder, client=None):
    """Old artifacts are found, new ones go to the folder, in old runs and in new ones."""
    client = client or opened(folder)
    experiment = client.get_experiment_by_name("ali").experiment_id
    (old,) = client.search_runs([experiment])
    for run in (old, client.create_run(experiment)):
        client.log_text(run.info.run_id, "2", "two")
        assert (folder / "artifacts" / run.info.run_id / "artifacts" / "two").read_text() == "2"
    assert sorted(a.path for a in client.list_artifacts(old.info.run_id)) == ["one", "two"]
    (version,) = client.search_model_versions("name = 'm'")
    assert version.source == f"{(folder / 'artifacts').as_uri()}/{old.info.run_id}/artifacts/model"


def test_a_moved_folder_keeps_what_is_logged_next(before, tmp_path, capsys):
    after = tmp_path / "moved"
    before.rename(after)
    capsys.readouterr()
    follow(after)
    assert f"note: {before / 'artifacts'} is now {after / 'artifacts'}" in capsys.readouterr().out
    check_is_whole(after)
    assert not before.exists()
    follow(after)
    assert capsys.readouterr().out == "", "once"


def test_a_copy_leaves_the_original_alone(before, tmp_path):
    copy = Path(shutil.copytree(before, tmp_path / "copy"))
    files = sorted(before.rglob("*"))
    follow(copy)
    check_is_whole(copy)
    assert sorted(before.rglob("*")) == files
    follow(before)
    client = opened(before)
    experiment = client.get_experiment_by_name("ali")
    (run,) = client.search_runs([experiment.experiment_id])
    assert experiment.artifact_location == (before / "artifacts").as_uri()
    assert run.info.artifact_uri.startswith(experiment.artifact_location)


def test_another_path_to_the_same_folder_changes_nothing(before, tmp_path, capsys):
    (tmp_path / "link").symlink_to(before)
    capsys.readouterr()
    follow(tmp_path / "link")
    assert capsys.readouterr().out == ""


def test_a_database_elsewhere(before, tmp_path):
    """It may serve several output folders; where its artifacts are gone, that is said."""
    shutil.move(before / "mlflow.db", tmp_path / "mlflow.db")
    client, other = opened(tmp_path), tmp_path / "other"
    other.mkdir()
    follow(other, client)
    assert (before / "artifacts").as_uri() in client.get_experiment_by_name("ali").artifact_location
    before.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"run s/artifacts, which is gone: .*/other/artifacts"):
        follow(other, client)
    follow(tmp_path / "moved", client)
    check_is_whole(tmp_path / "moved", client)
