"""What a resume finds again: names, servers and places, whatever the environment is then."""

import sys

import pytest

from sweeps.engine import scripts
from sweeps.engine.options import JOURNAL, Options, _moved
from sweeps.engine.saved_options import parse

pytestmark = pytest.mark.versions


def options(**more):
    return Options(**{"name": "s", **more})


@pytest.mark.parametrize("name", ["1e-3", "08", "1e5", "7", "true", "null"])
def test_a_name_that_looks_like_a_number_stays_a_name(tmp_path, name):
    made = options(name=name, output_dir=tmp_path, warm_start="09")
    made.folder.mkdir()
    made.save()
    again = parse(options(), ["--name", name, "--output-dir", str(tmp_path), "--resume"])
    assert (again.name, again.warm_start) == (name, "09") and made.uri == again.uri


def test_the_server_that_a_sweep_was_started_with_is_remembered(tmp_path, monkeypatch):
    """A resume from Python, which need not name it, keeps it; the environment's may move."""
    (tmp_path / "s").mkdir()
    options(output_dir=tmp_path, tracking_uri="http://server:5000").save()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://another:5000")
    for _ in range(2):
        again = options(output_dir=tmp_path, resume=True)
        assert again.uri == "http://server:5000"
        again.save()
    (tmp_path / "t").mkdir()
    options(name="t", output_dir=tmp_path).save()
    for uri in ("http://another:5000", "http://moved:5000"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert options(name="t", output_dir=tmp_path, resume=True).uri == uri


def test_commands_that_are_printed_need_no_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ALI_OUTPUT_DIR", str(tmp_path))
    monkeypatch.setenv("ALI_STORAGE_PATH", "s3://bucket/runs")
    shown = options().arguments()
    assert shown[2:] == ["--output-dir", str(tmp_path), "--storage-path", "s3://bucket/runs"]
    monkeypatch.delenv("ALI_OUTPUT_DIR")
    monkeypatch.delenv("ALI_STORAGE_PATH")
    assert options().arguments() == ["--name", "s"]


def test_only_places_in_the_output_folder_move_with_it(tmp_path):
    plain = {"output_dir": "/runs", "storage_path": "s3://bucket/runs", "data_dir": "/mnt/runs/x"}
    assert _moved(plain, tmp_path) == {k: plain[k] for k in ("storage_path", "data_dir")}
    plain |= {"tracking_uri": "sqlite:////runs/own.db", "data_dir": "/runs/data"}
    moved = _moved(plain, tmp_path)
    assert moved["tracking_uri"] == f"sqlite:///{tmp_path}/own.db"
    assert moved["data_dir"] == f"{tmp_path}/data"


def test_a_script_that_reads_no_command_line_is_told_how_to_resume(monkeypatch):
    monkeypatch.setattr(scripts.arguments, "are_read", False)
    assert scripts.resume_command("--name", "s") == "resume=True among its options"
    monkeypatch.setattr(sys, "argv", ["own.py", "--name", "s"])
    parse(options())
    assert scripts.resume_command("--name", "s").endswith("own.py --name s --resume")


def test_from_python_too_a_sweep_that_has_begun_is_resumed_by_itself(tmp_path):
    asked = options(output_dir=tmp_path, auto_resume=True)
    assert not asked.automatic().resume
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / JOURNAL).touch()
    assert asked.automatic().resume and not options(output_dir=tmp_path).automatic().resume
