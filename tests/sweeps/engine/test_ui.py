"""The UI's command: the links it prints, and how it starts the server."""

import shutil
import socket

import pytest

from ali.errors import UserError
from sweeps.engine import tracking, ui
from sweeps.engine.endings import Ending, EndState
from sweeps.engine.tracking.view import VIEW
from sweeps.engine.ui import UiOptions, serve_ui
from tests.integration.harness import new_database


@pytest.fixture
def sweeps(tmp_path, tmp_path_factory):
    """A database with two sweeps in it, written without views, as an earlier version did."""
    shutil.copy(new_database(tmp_path_factory.mktemp("database")), tmp_path)
    uri = tracking.default_uri(tmp_path)
    client = tracking.connect(uri)
    experiment = tracking.experiment_id(client, tmp_path)
    for name in ("one", "two"):
        parent = tracking.start_sweep(client, experiment, name, "val_error", {})
        to = tracking.TrackingContext(uri, experiment, name, parent, "val_error")
        for trial, lr in (("00000", 0.1), ("00001", 0.2)):
            config = {"lr_d": lr, "epochs": 3, "data": "svhn"}
            tracking.create_trial(client, to, trial, config=config)
            tracking.end_trial(client, to, trial, Ending(EndState.COMPLETED, ""))
        client.set_tag(parent, "best_trials", '["00001", "00000"]')
    return client, experiment


def served(monkeypatch, capsys, **options):
    """(what is printed, the server's command, its variables)"""
    called, variables = [], {}
    monkeypatch.setattr(ui, "refuse_taken_port", lambda *_: None)  # by whoever works here
    monkeypatch.setattr(ui.os, "execv", lambda *command: called.append(command))
    for setting in ("set_defaults", "set_values"):
        monkeypatch.setattr(ui.environment, setting, lambda **more: variables.update(more))
    serve_ui(UiOptions(**options))
    return capsys.readouterr().out, called, variables


def test_links_of_all_sweeps_or_one_and_views_of_those_of_earlier_versions(
    sweeps, tmp_path, monkeypatch, capsys
):
    client, experiment = sweeps
    said, called, _ = served(monkeypatch, capsys, output_dir=tmp_path, name="one", port=5001)
    assert "viewStateShareKey=one\n" in said and "=two" not in said
    assert "http://127.0.0.1:5001/#/experiments/" in said and "=one/best&" in said
    tags = client.get_experiment(experiment).tags
    assert "params.`lr_d`" in tags[f"{VIEW}one"] and "params.`data`" not in tags[f"{VIEW}one"]
    assert f"{VIEW}one/best" in tags and f"{VIEW}two" not in tags
    assert "front page" not in said, "it was run without"
    parent = tracking.find_sweep(client, experiment, "two").info.run_id
    client.set_tag(parent, "mlflow.note.content", "what was found")
    said, _, _ = served(monkeypatch, capsys, output_dir=tmp_path)
    assert "=one\n" in said and "=two\n" in said
    assert said.count("front page") == 1 and f"/runs/{parent}?workflowType=" in said
    assert len(called) == 1 and "5001" in called[0][1]
    with pytest.raises(UserError, match="it has one, two"):
        served(monkeypatch, capsys, output_dir=tmp_path, name="three")


def test_a_port_that_cannot_be_served_is_refused_in_a_line(sweeps, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for port in (taken.getsockname()[1], 99999):
            with pytest.raises(UserError, match=f"port {port} cannot be used .*: give another"):
                serve_ui(UiOptions(output_dir=tmp_path, port=port))


def test_a_password_is_neither_printed_nor_in_the_command(sweeps, tmp_path, monkeypatch, capsys):
    client, _ = sweeps
    monkeypatch.setattr(ui, "connect", lambda *_, **__: client)
    for uri, serves in (("postgresql://me:s3cret@h/db", 1), ("http://me:s3cret@h:5000", 0)):
        monkeypatch.setattr(ui.environment, "tracking_uri", lambda uri=uri: uri)
        said, called, variables = served(monkeypatch, capsys, output_dir=tmp_path)
        assert len(called) == serves and "s3cret" not in said + str(called)
        assert not serves or variables["MLFLOW_BACKEND_STORE_URI"] == uri
    assert "http://…@h:5000/#/experiments/" in said
