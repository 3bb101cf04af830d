"""Checkpoints and artifacts on a server that speaks S3, and on an emulator of Google's."""

import contextlib
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from mlflow import MlflowClient
from pyarrow import fs

from ali.errors import UserError
from sweeps.engine import retry
from sweeps.engine import storage as module
from sweeps.engine.mirror import LEASE, JournalMirror
from sweeps.engine.storage import Storage
from tests.audit import audit
from tests.integration.harness import Server, Toy, answers, free_port, wait_for
from tests.integration.object_store import BUCKET, KEYS, ObjectStore, serve

pytestmark = pytest.mark.versions


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    made = ObjectStore(tmp_path_factory.mktemp("s3"))
    yield made
    made.process.kill()
    made.process.wait()


@pytest.fixture(scope="module")
def google(tmp_path_factory):
    """The address of a bucket on a server that speaks Google's protocol."""
    folder, port, module = tmp_path_factory.mktemp("gs"), str(free_port()), "gcp_storage_emulator"
    options = ("start", "--in-memory", "--host", "127.0.0.1", "--port", port)
    process = serve(module, *options, "--default-bucket", BUCKET, folder=folder)
    answers(f"http://127.0.0.1:{port}/storage/v1/b/{BUCKET}", folder / f"{module}.log")
    yield f"gs://anonymous@{BUCKET}/runs?scheme=http&endpoint_override=127.0.0.1:{port}"
    process.kill()
    process.wait()


@pytest.fixture(params=["folder", "s3", "gs"])
def storage(request, tmp_path, store, google, monkeypatch):
    for key, value in KEYS.items():
        monkeypatch.setenv(key, value)
    address = {"folder": tmp_path / "runs", "s3": store.uri, "gs": google}[request.param]
    made = Storage.at(address, tmp_path.name)
    assert made.remote == (request.param != "folder")
    made.filesystem.create_dir(made.folder)
    return made


def write(storage, path, text):
    folder = f"{storage.folder}/{path.rpartition('/')[0]}"
    storage.filesystem.create_dir(folder)
    with storage.filesystem.open_output_stream(f"{storage.folder}/{path}") as out:
        out.write(text)


def test_a_bucket_and_a_folder_are_alike(storage, tmp_path):
    assert storage.checkpoints("00000") == [] and storage.trials() == set()
    for number in (1, 0, 2):
        write(storage, f"00000/checkpoint_00000{number}/state/a", b"12345")
        write(storage, f"00000/checkpoint_00000{number}/b", b"67")
    write(storage, "00000/other", b"")
    write(storage, "best-00000/checkpoint", b"")
    write(storage, "00001", b"")
    assert storage.trials() == {"00000", "00001"}
    found = storage.checkpoints("00000")
    assert [Path(folder).name for folder in found] == [f"checkpoint_00000{n}" for n in range(3)]
    assert storage.size(found[0]) == 7
    with storage.local(found[2]) as local:
        assert (local / "state" / "a").read_bytes() == b"12345"
    storage.delete(found[1])
    storage.delete(found[1])  # gone already
    assert storage.checkpoints("00000") == [found[0], found[2]]
    copy = tmp_path / "here" / "journal"
    storage.fetch(copy)
    assert storage.read("journal") is None and not copy.parent.exists()
    storage.write("journal", b"one\n")
    storage.fetch(copy)
    assert storage.read("journal") == copy.read_bytes() == b"one\n"


@pytest.mark.parametrize(
    ("here", "there", "then"),
    [
        ("", "1\n2\n", "1\n2\n"),
        ("1\n", "1\n2\n", "1\n2\n"),
        ("1\n2\n", "1\n", "1\n2\n"),
        ("1\n2", "1\n2\n3\n", "1\n2\n3\n"),  # a killed driver's last line
        ("1\n2\n", "1\n3\n", None),
    ],
)
def test_the_longer_journal_is_gone_on_with(storage, tmp_path, here, there, then):
    journal = tmp_path / "here" / "journal"
    journal.parent.mkdir()
    journal.write_text(here)
    storage.write("journal", there.encode())
    with contextlib.nullcontext() if then else pytest.raises(UserError, match="was continued in"):
        storage.catch_up(journal)
    assert journal.read_text() == (then or here)


def test_the_mirror_follows_a_growing_file_and_is_complete_at_its_end(storage, tmp_path):
    journal, copy = tmp_path / "journal", storage.read
    journal.write_text("1\n")
    with JournalMirror(storage, "it", journal, tmp_path / "absent"), journal.open("a") as file:
        file.write("2\n")
    # a local folder has the journal itself
    assert copy("journal") == (b"1\n2\n" if storage.remote else None)
    assert copy(LEASE) is None


DRIVER = """
import sys
from pathlib import Path
from sweeps.engine import mirror
from sweeps.engine.storage import Storage
mirror.MIRROR_SECONDS, mirror.LEASE_SECONDS = 0.5, 3
address, name, journal = sys.argv[1:]
with mirror.JournalMirror(Storage.at(address, name), "the sweep", Path(journal)):
    print("drives", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def drive(store, tmp_path):
    """Starts a driver on a machine of its own, as far as it can know."""
    started = []

    def start(machine):
        (tmp_path / machine).mkdir(exist_ok=True)
        command = [sys.executable, "-c", DRIVER, store.uri, tmp_path.name]
        started.append(
            subprocess.Popen(
                [*command, str(tmp_path / machine / "journal")],
                env={**os.environ, **KEYS},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_one_driver_has_a_bucket(drive):
    first = drive("a")
    assert first.stdout.readline() == "drives\n"
    _, err = drive("b").communicate(timeout=60)
    assert f"the sweep is being run by process {first.pid} on" in err
    first.communicate("ends")
    assert first.returncode == 0
    next_one = drive("b")
    assert next_one.stdout.readline() == "drives\n"  # at once
    next_one.kill()
    last = drive("a")
    assert f"was run by process {next_one.pid} on" in last.stdout.readline()
    assert last.stdout.readline() == "drives\n"


def test_a_driver_that_was_taken_for_dead_ends_when_it_is_back(drive, store, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "journal").write_text("1\n")
    first = drive("a")
    assert first.stdout.readline() == "drives\n"
    wait_for(lambda: store.keys(f"runs/{tmp_path.name}/journal"), first)
    os.kill(first.pid, signal.SIGSTOP)
    second = drive("b")
    assert "was run by" in second.stdout.readline() and second.stdout.readline() == "drives\n"
    assert (tmp_path / "b" / "journal").read_text() == "1\n"
    os.kill(first.pid, signal.SIGCONT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 1 and f"taken over by process {second.pid} on" in err
    second.communicate("ends")
    assert second.returncode == 0


def test_addresses_that_are_none_or_hold_a_secret(tmp_path, store):
    with pytest.raises(UserError, match="must not hold keys"):
        Storage.at("s3://key:secret@bucket/runs", "toy")
    with pytest.raises(UserError, match="must not hold keys"):
        Storage.at("gs://token@bucket/runs", "toy")
    with pytest.raises(UserError, match=r"--storage-path nfs://server/runs: .*nfs"):
        Storage.at("nfs://server/runs", "toy")


@pytest.fixture
def clustered(tmp_path, store):
    """A sweep with a tracking server and storage elsewhere: nothing but the journal is local."""
    server = Server(tmp_path, artifacts=f"s3://{BUCKET}/{tmp_path.name}")
    old = {key: os.environ.get(key) for key in store.env}
    os.environ.update(store.env)
    try:
        server.start()
        yield Toy(
            tmp_path,
            name=tmp_path.name,
            env={"ALI_STORAGE_PATH": store.uri, "TOY_SECONDS": "0.4"},
            server=server.uri,
        )
    finally:
        server.stop()
        for key, value in old.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


@pytest.mark.long
def test_a_sweep_outlives_its_machine_where_its_storage_is_a_bucket(clustered, store):
    toy, trials = clustered, 8
    options = ("--tracking-uri", toy.server, "--num-trials", str(trials), "--keep", "2")
    slow = replace(toy, env={**toy.env, "TOY_SECONDS": "1.5"})  # outlasts a second driver's start
    process = slow.start(*options)
    wait_for(lambda: toy.epochs().total() >= 9, process)
    wait_for(lambda: any("checkpoint_" in key for key in store.keys(f"runs/{toy.name}/")), process)
    elsewhere = replace(toy, runs_folder=toy.folder / "elsewhere")
    refused = elsewhere.run("--resume", "--tracking-uri", toy.server, expect=2)
    assert f"sweep '{toy.name}' is being run by process {process.pid} on" in refused
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = toy.epochs().total()
    shutil.rmtree(toy.runs)  # the machine, and all on it
    # the newest checkpoint of a trial was damaged on the way
    newest = [key for key in store.keys(f"runs/{toy.name}/") if key.endswith("epoch.json")][-1]
    store.client().put_object(Bucket=BUCKET, Key=newest, Body=b"9")

    refused = toy.run("--tracking-uri", toy.server, expect=2)
    assert f"a sweep '{toy.name}' exists in s3://" in refused  # not begun anew on its checkpoints
    out = toy.run("--resume")
    assert f"checkpoints in sweeps/runs/{toy.name}" in out
    told = (toy.runs / toy.name / "sweep.log").read_text()
    assert told.count(f"sweep {toy.name}: {trials} trials") == 2, "what was said there, too"
    storage = Storage.at(store.uri, toy.name)
    states = [key for key in store.keys(f"runs/{toy.name}/") if "experiment_state-" in key]
    storage.fetch(toy.runs / toy.name / Path(max(states)).name)  # where audit looks
    ends = audit(toy, trials)
    repeated = sum(count - 1 for count in toy.epochs().values())
    assert repeated <= 2 * 3 and before >= 9, "of two trials: an epoch not saved, one damaged"
    left = {key.split("/")[2] for key in store.keys(f"runs/{toy.name}/") if "/checkpoint_" in key}
    assert len(left) == 2, "checkpoints of the two best"
    assert all(ends[name] == "COMPLETE" for name in left)
    pictures = [key for key in store.keys(f"{toy.name}/") if key.endswith(".png")]
    assert len(pictures) >= trials / 2, "artifacts went through the server to the bucket"
    logged = out + "".join(path.read_text() for path in (toy.runs / toy.name).glob("*.json"))
    params = str([run.data.params for run in toy.parents()])
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in logged + params


@pytest.mark.long
def test_a_sweep_outlives_its_machine_where_its_storage_is_googles(toy, google):
    toy.env.update(ALI_STORAGE_PATH=google, TOY_SECONDS="0.4")
    process = toy.start("--num-trials", "4")
    wait_for(lambda: toy.epochs().total() >= 6, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (toy.runs / toy.name / "optuna.journal").unlink()
    toy.run("--resume")
    storage = Storage.at(google, toy.name)
    files = storage.filesystem.get_file_info(fs.FileSelector(storage.folder))
    states = [info.base_name for info in files if info.base_name.startswith("experiment_state-")]
    storage.fetch(toy.runs / toy.name / max(states))  # where audit looks
    ends = audit(toy, 4)
    assert any(storage.checkpoints(name) for name in ends)


@pytest.mark.long
def test_a_full_training_outlives_its_machine_too(clustered, store):
    toy, root = clustered, Path(__file__).parents[2]
    env = {**os.environ, **toy.env, "MLFLOW_TRACKING_URI": toy.server, "OMP_NUM_THREADS": "1"}

    def start(script, *options):
        command = [sys.executable, str(root / "sweeps" / script), "--name", toy.name, *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, env=env, cwd=toy.folder, text=True, **pipes)

    def run(*command):
        process = start(*command)
        out, _ = process.communicate(timeout=240)
        assert process.returncode == 0, out
        return out

    sweep = "--data house-numbers --width 0.125 --train-size 600 --labels 100 --draws 1"
    run("svhn.py", *sweep.split(), "--batch-size", "50", "--epochs", "1", "--num-trials", "1")
    best = ("best.py", "--svms", "2", "--epochs")
    under = f"runs/{toy.name}/best-00000/checkpoint_00000"
    process = start(*best, "50")
    wait_for(lambda: store.keys(f"{under}4/state.json"), process)
    process.kill()
    process.communicate()
    shutil.rmtree(toy.folder / "runs")
    damaged = max(key for key in store.keys(under) if "/weights-" in key)
    store.client().put_object(Bucket=BUCKET, Key=damaged, Body=b"9")
    epoch = int(damaged.split("/")[3].removeprefix("checkpoint_"))
    out = run(*best, str(epoch + 1))
    assert "note: checkpoint" in out and "starts from the beginning" not in out
    assert f"continues from epoch {epoch - 1} (sweeps/runs/{toy.name}/best-00000/" in out
    kept = sorted({key.split("/")[3] for key in store.keys(under)})
    assert kept == [f"checkpoint_{n:06d}" for n in (epoch, epoch + 1)]
    workers = run(*best, str(epoch + 2), "--workers", "2")
    assert f"continues from epoch {epoch + 1} (sweeps/runs/" in workers


def test_a_bucket_that_is_not_there_is_said_in_one_line(clustered, store):
    toy = clustered
    toy.env["ALI_STORAGE_PATH"] = store.uri.replace(BUCKET, "no-such-bucket")
    out = toy.run("--tracking-uri", toy.server, "--num-trials", "1", expect=2)
    (line,) = [line for line in out.splitlines() if line.startswith("error: ")]
    assert "cannot write to --storage-path no-such-bucket/runs" in line and "Traceback" not in out
    assert not toy.runs.exists() and not MlflowClient(toy.server).search_experiments(
        filter_string="name = 'ali'"
    )


@contextlib.contextmanager
def silent_port():
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:  # the kernel takes them
        yield listening.getsockname()[1]


def test_a_silent_bucket_is_named_and_given_up_within_seconds(monkeypatch, caplog):
    """By trials, too, to which it is handed as a pickle. pyarrow's own calls wait for 100 s."""
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    monkeypatch.setattr(module, "ATTEMPT_SECONDS", 1.0)
    monkeypatch.setattr(retry, "SILENT_SECONDS", 1.0)
    for key, value in KEYS.items():
        monkeypatch.setenv(key, value)
    with silent_port() as port:
        where = f"region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{port}"
        storage = Storage.at(f"s3://{BUCKET}/runs?{where}", "toy")
        storage = replace(storage, filesystem=pickle.loads(pickle.dumps(storage.filesystem)))
        began = time.monotonic()
        with pytest.raises(UserError, match=f"cannot read {BUCKET}/runs/toy: .*Timeout"):
            storage.has("journal")
        assert time.monotonic() - began < 10
    assert caplog.messages[0].startswith(f"still waiting for the storage {BUCKET}/runs/toy")
    limited = Storage.at(f"gs://anonymous@{BUCKET}/runs", "toy").filesystem.__reduce__()[1][0]
    assert limited["retry_time_limit"] == timedelta(seconds=module.RETRY_SECONDS)
