"""MLflow as a real server that goes away, and what is found in it afterwards."""

import ast
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from mlflow import MlflowClient

from ali.errors import UserError
from sweeps.engine import tracking
from sweeps.engine.endings import Ending, EndState
from sweeps.engine.tracking import access
from tests.integration.harness import EPOCHS, Server, free_port, image, logged_steps, lost

pytestmark = pytest.mark.versions


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path)
    made.start()
    yield made
    made.stop()


PASSWORD = "s3cret/pass@word"
DONE = Ending(EndState.COMPLETED, "done")


FIRST = """
import sys
from pathlib import Path
from sweeps.engine import tracking
folder = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(tracking.experiment_id(tracking.connect(tracking.default_uri(folder)), folder))
"""


def test_several_processes_may_be_the_first_to_use_a_database(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-c", FIRST, str(tmp_path)]
    several = [subprocess.Popen(command, text=True, **pipes) for _ in range(3)]
    for process in several:
        assert process.stdout.readline() == "ready\n"
    for process in several:
        process.stdin.write("\n")
        process.stdin.flush()
    ended = [process.communicate(timeout=240) for process in several]
    assert [process.returncode for process in several] == [0, 0, 0], ended
    assert len({out for out, _ in ended}) == 1, "one experiment"


def test_a_database_is_there_with_all_its_tables_or_not_at_all(tmp_path):
    """Half of them, as a full disk or a kill leaves it, MLflow never completes."""
    uri = tracking.default_uri(tmp_path)
    (tmp_path / ".mlflow.db-killed").mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot create .*mlflow\.db: .*; free space, or"):
            tracking.connect(uri)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db.lock"]
    assert tracking.connect(uri).search_experiments()


def test_a_run_that_two_threads_open_is_created_once(local):
    client, to = local
    run = tracking.TrialRun(to, "00000", {"lr": 1}, kind="best", create=True)  # in its queue
    run.open()
    run.queue.close()
    assert run.queue.lost == 0
    assert len(tracking.find_runs(client, to.experiment, sweep="s", kind="best")) == 1


ASKED = """
import sys
asked = []
def note(event, about):
    if event in ("socket.connect", "socket.getaddrinfo"):
        asked.append(about[1] if event == "socket.connect" else about[:2])
sys.addaudithook(note)
import time
from pathlib import Path
from sweeps.engine import tracking
folder = Path(sys.argv[1])
client = tracking.connect(tracking.default_uri(folder))
tracking.start_sweep(client, tracking.experiment_id(client, folder), "s", "val_error", {})
time.sleep(1)
print(asked)
"""


def test_nobody_else_is_asked(tmp_path, database, monkeypatch):
    """MLflow asks its makers whether they want telemetry, unless it takes this for a test."""
    for name in ("CI", "PYTEST_CURRENT_TEST"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(database, tmp_path)
    command = [sys.executable, "-c", ASKED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_a_trial_that_starts_again_goes_on_in_its_run(local):
    # The bare stack's callback opens a second run and leaves the first one RUNNING.
    client, to = local
    for first, last in ((1, 3), (2, 5)):
        tracking.open_trial(client, to, "00000")
        run = tracking.TrialRun(to, "00000", {"lr": 1})
        for epoch in range(first, last):
            run.epoch({"epoch": epoch, "val_error": 0.5}, image())
        run.queue.close()
        assert run.queue.lost == 0
    runs = tracking.find_runs(client, to.experiment, sweep="s", kind="trial")
    assert len(runs) == 1
    assert logged_steps(client, to, "00000") == [1, 2, 3, 4]
    images = client.list_artifacts(runs[0].info.run_id, "images")
    assert len([a for a in images if a.path.endswith(".png")]) == 4, "a picture an epoch"


def test_an_epoch_is_one_request_and_the_trial_does_not_wait_for_it(local, monkeypatch):
    # The bare stack's callback: a request a metric, 1134 ms for 20 of them, on the driver.
    client, to = local
    tracking.open_trial(client, to, "00000")
    batches = []

    def slow(self, run_id, **what):
        if what.get("metrics"):
            time.sleep(0.5)
            batches.append(len(what["metrics"]))

    run = tracking.TrialRun(to, "00000", {})
    assert run.queue.flush(60)
    monkeypatch.setattr(MlflowClient, "log_batch", slow)
    monkeypatch.setattr(MlflowClient, "log_metric", None)
    start = time.monotonic()
    run.epoch({"epoch": 1} | {f"m{i}": 0.0 for i in range(20)}, {})
    assert time.monotonic() - start < 0.1
    run.queue.close()
    assert batches == [21]


def test_metrics_do_not_wait_for_pictures_and_lost_ones_are_told(local, tmp_path):
    client, to = local
    store = tmp_path / "artifacts"
    store.write_text("a store that takes nothing")
    tracking.open_trial(client, to, "00000")
    run = tracking.TrialRun(to, "00000", {}, outage_seconds=2)
    for epoch in (1, 2, 3):
        run.epoch({"epoch": epoch, "val_error": 0.5}, image())
    run.text("a traceback", "traceback.txt")
    assert run.queue.flush(1.5) and logged_steps(client, to, "00000") == [1, 2, 3]
    assert run.queue.lost == 0, "the pictures are still tried"
    assert not run.queue.flush_files(0.1)
    run.tell_missing()  # by a process that ends before they are given up
    assert run.queue.flush(1)
    assert lost(client, to).endswith("it lacks pictures of 00000 (3 epochs); texts of 00000")
    run.queue.close()
    assert run.queue.lost == 4
    store.unlink()
    again = tracking.TrialRun(to, "00000", {})
    again.epoch({"epoch": 3, "val_error": 0.5}, image())  # trained again, from a checkpoint
    again.queue.close()
    assert lost(client, to).endswith("it lacks pictures of 00000 (2 epochs); texts of 00000")
    assert logged_steps(client, to, "00000") == [1, 2, 3]


def test_lost_metrics_are_told_with_the_next_and_sent_after_a_restart(local, monkeypatch):
    client, to = local
    tracking.open_trial(client, to, "00000")
    log_batch = MlflowClient.log_batch

    def away(self, run_id, **what):
        if any(metric.step == 1 for metric in what.get("metrics", ())):
            raise ConnectionError("the database is full")
        log_batch(self, run_id, **what)

    for is_away, lacks in ((True, "metrics of 00000 (1 epoch)"), (False, "")):
        monkeypatch.setattr(MlflowClient, "log_batch", away if is_away else log_batch)
        run = tracking.TrialRun(to, "00000", {}, outage_seconds=0)
        for epoch in (1, 2):
            run.epoch({"epoch": epoch, "val_error": 0.5}, {})
        assert run.queue.flush(60)
        if is_away:  # a process that is killed here has told it
            assert lost(client, to).endswith(lacks)
        run.queue.close()
        assert lost(client, to).endswith(lacks) and run.queue.lost == is_away
    assert sorted(logged_steps(client, to, "00000")) == [1, 2]


def test_an_epoch_whose_answer_was_lost_is_logged_once(local, monkeypatch):
    client, to = local
    tracking.open_trial(client, to, "00000")
    run = tracking.TrialRun(to, "00000", {})
    assert run.queue.flush(60)
    log_batch, calls = MlflowClient.log_batch, []

    def cut(self, run_id, **what):
        log_batch(self, run_id, **what)
        if what.get("metrics") and not calls:
            calls.append(run_id)
            raise ConnectionError("the network went away")

    monkeypatch.setattr(MlflowClient, "log_batch", cut)
    run.epoch({"epoch": 1, "val_error": 0.5}, {})
    run.queue.close()
    assert calls and run.queue.lost == 0
    assert logged_steps(client, to, "00000") == [1]


def test_two_sweeps_may_make_the_experiment_at_the_same_moment(local, monkeypatch):
    client, to = local
    look, seen = MlflowClient.get_experiment_by_name, []

    def too_early(self, name):
        seen.append(name)
        return look(self, name) if len(seen) > 1 else None

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", too_early)
    assert tracking.experiment_id(client, Path("runs")) == to.experiment


def test_a_parameter_that_is_another_at_a_later_start_stops_no_record(local):
    client, to = local
    tracking.open_trial(client, to, "00000")
    for threads in (1, 2):
        run = tracking.TrialRun(to, "00000", {"threads": threads, "lr": 0.1}, outage_seconds=1)
        run.epoch({"epoch": threads, "val_error": 0.5}, {})
        run.queue.close()
        assert run.queue.lost == 0
    data = tracking.find_trial(client, to, "00000").data
    assert (data.params["threads"], data.tags["later.threads"]) == ("1", "2")
    assert "later.lr" not in data.tags


def test_what_a_lost_process_did_not_deliver_comes_from_the_study(local):
    client, to = local
    config = {"lr_d": 0.1, "seed": 0}
    tracking.open_trial(client, to, "00000", config)
    tracking.end_trial(client, to, "00000", DONE, {1: 0.5, 2: 0.4}, config)
    run = tracking.find_trial(client, to, "00000")
    assert run.data.params == {"lr_d": "0.1", "log10_lr_d": "-1.0", "seed": "0"}
    assert json.loads(run.data.tags["config"]) == config
    assert (run.info.status, run.data.metrics["val_error"]) == ("FINISHED", 0.4)
    assert lost(client, to).endswith("it lacks metrics of 00000 (2 epochs)"), "all others of them"
    assert logged_steps(client, to, "00000") == [1, 2]


def test_the_best_trials_are_those_that_the_driver_wrote(local):
    client, to = local
    assert tracking.best_trials(tracking.require_sweep(client, to.experiment, "s")) == []
    tracking.set_best_trials(client, to, ["00002", "00000"])
    run = tracking.require_sweep(client, to.experiment, "s")
    assert tracking.best_trials(run) == ["00002", "00000"]
    with pytest.raises(UserError, match="it has s"):
        tracking.require_sweep(client, to.experiment, "unknown")


def test_no_server_is_a_clear_error_within_seconds():
    start = time.monotonic()
    with pytest.raises(UserError, match="no MLflow server answers"):
        tracking.connect("http://127.0.0.1:9")
    assert time.monotonic() - start < 15


@pytest.mark.slow
def test_records_wait_for_a_server_that_is_away(server):
    client = tracking.connect(server.uri)
    experiment = tracking.experiment_id(client, server.folder)
    parent = tracking.start_sweep(client, experiment, "s", "val_error", {})
    to = tracking.TrackingContext(server.uri, experiment, "s", parent, "val_error")
    tracking.open_trial(client, to, "00000")
    run = tracking.TrialRun(to, "00000", {"lr": 1})
    run.epoch({"epoch": 1, "val_error": 0.5}, image())
    assert run.queue.flush(60)
    server.stop()
    start = time.monotonic()
    run.epoch({"epoch": 2, "val_error": 0.4}, image())
    assert time.monotonic() - start < 0.5, "training does not wait"
    time.sleep(3)
    server.start()
    run.queue.close()
    assert run.queue.lost == 0
    assert logged_steps(client, to, "00000") == [1, 2]


NOTE_CONNECTIONS = """
import socket, sys
def note(event, about):
    if event == "socket.getaddrinfo":
        asked = about[0]
    elif event == "socket.connect" and about[0].type == socket.SOCK_STREAM:
        asked = about[1]
    else:
        return
    with open({log!r}, "a") as out:
        print(repr(asked), file=out)
sys.addaudithook(note)
"""


@pytest.mark.long
def test_a_sweep_outlives_its_server_for_a_while(server, toy, monkeypatch):
    """It asks nobody else: no telemetry of MLflow's, no cloud, as Ray would, and no proxy."""
    for name in ("CI", "PYTEST_CURRENT_TEST"):  # with which MLflow is silent
        monkeypatch.delenv(name, raising=False)
    log, hook = toy.folder / "connections", toy.folder / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(NOTE_CONNECTIONS.format(log=str(log)))
    toy.env["PYTHONPATH"] = f"{hook}:{os.environ.get('PYTHONPATH', '')}"
    proxy = free_port()
    toy.env["http_proxy"] = toy.env["https_proxy"] = f"http://127.0.0.1:{proxy}"
    toy.env["TOY_SECONDS"] = "0.7"
    process = toy.start("--num-trials", "3", "--tracking-uri", server.uri)
    while toy.epochs().total() < 4:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    server.stop()
    time.sleep(8)
    server.start()
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("ali").experiment_id
    runs = tracking.find_runs(client, experiment, sweep="toy", kind="trial")
    assert sorted(r.data.tags["trial_id"] for r in runs) == ["00000", "00001", "00002"]
    for run in runs:
        assert run.info.status in ("FINISHED", "KILLED")
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "val_error")]
        assert steps == list(range(1, len(steps) + 1))
    asked = {ast.literal_eval(line) for line in log.read_text().splitlines()}
    pairs = {address for address in asked if isinstance(address, tuple)}
    hosts = {address[0] for address in pairs} | {a for a in asked if "/" not in str(a)} - pairs
    hosts -= {None, "localhost", socket.gethostname()}
    assert [host for host in hosts if not access._is_own(host)] == []
    ports = {port for _, port, *_ in pairs}
    assert server.port in ports and proxy not in ports


@pytest.mark.long
def test_a_full_artifact_store_costs_the_pictures_alone_and_the_report_says_so(toy):
    toy.runs.mkdir()
    (toy.runs / "artifacts").write_text("a store that takes nothing")
    out = toy.run("--num-trials", "2", "--image-every", "2")
    assert "it lacks pictures of 00000 (3 epochs), 00001 (3 epochs)" in " ".join(out.split())
    for (run,) in toy.mlflow().values():
        assert run.data.metrics["epoch"] == EPOCHS and "d_loss" in run.data.metrics


@pytest.mark.long
def test_a_server_with_logins(tmp_path, toy, monkeypatch):
    pytest.importorskip("flask_wtf")
    logins = tmp_path / "logins.ini"  # the variable for its password is newer than MLflow 3.11
    logins.write_text(
        f"[mlflow]\nadmin_username = admin\nadmin_password = {PASSWORD}\n"
        f"database_uri = sqlite:///{tmp_path}/logins.db\ndefault_permission = READ\n"
    )
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(logins))
    monkeypatch.setenv("MLFLOW_FLASK_SERVER_SECRET_KEY", "any")
    server = Server(tmp_path, options=("--app-name", "basic-auth"))
    server.start()
    toy.server = server.uri
    try:
        for password, code in (("wrong", 2), (PASSWORD, 0)):
            login = f"admin:{quote(password, safe='')}@127.0.0.1"
            toy.env["MLFLOW_TRACKING_URI"] = server.uri.replace("127.0.0.1", login)
            out = toy.run("--num-trials", "2", expect=code)
            assert password not in out and quote(password, safe="") not in out
        assert "access refused" not in out and f" {server.uri}/#/experiments/" in out
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        assert len(toy.mlflow()) == 2
        for file in toy.runs.rglob("*"):
            assert not file.is_file() or PASSWORD.encode() not in file.read_bytes(), file
    finally:
        server.stop()
