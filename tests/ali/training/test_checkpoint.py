"""Checkpoints: whole whatever kills the writer, checked on reading, found by every command."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import stat

import pytest
import torch

from ali.errors import UserError
from ali.training import checkpoint
from ali.training.checkpoint import find_checkpoint, read_manifest
from ali.training.state import State, load_networks
from tests.ali.training.states import SMALL, contents, images, run, trained
from tests.paths import ROOT

# Damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["weights", "optimizer"])
@pytest.mark.parametrize(
    ("damage", "said"), [("flip", "damaged"), ("truncate", "damaged"), ("remove", "lacks")]
)
def test_damaged_tensors_are_refused(folder, group, damage, said):
    (path,) = folder.glob(f"{group}-*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[:-100])
    with pytest.raises(UserError, match=said) as caught:
        State.load(folder, "cpu")
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "damaged"),
        ("[]", "not a checkpoint"),
        ('{"format": 1}', "not a checkpoint"),
        (None, "no checkpoint"),
    ],
)
def test_a_broken_manifest_is_refused(folder, text, said):
    path = folder / "state.json"
    path.unlink() if text is None else path.write_text(text)
    for read in (lambda: State.load(folder, "cpu"), lambda: load_networks(folder)):
        with pytest.raises(UserError, match=said):
            read()


@pytest.mark.parametrize(
    "wrong",
    [
        {"epoch": "x"}, {"epoch": -1}, {"step": None}, {"files": []}, {"generator": {}},
        {"files": {"weights": {"name": 3, "sha256": ""}}}, {"files": {"weights": {}}},
    ],
)  # fmt: skip
def test_values_of_a_wrong_type_are_damage(folder, wrong):
    """Format 1 has no checksum of its own."""
    path = folder / "state.json"
    plain = {**json.loads(path.read_text()), "format": 1, **wrong}
    path.write_text(json.dumps({k: v for k, v in plain.items() if k != "sha256"}))
    with pytest.raises(UserError, match="has values of a wrong type"):
        State.load(folder, "cpu")


def test_a_setting_of_a_newer_version_is_refused_with_the_way_on(folder):
    path = folder / "state.json"
    plain = json.loads(path.read_text())
    plain = {**plain, "format": 1, "config": {**plain["config"], "new_thing": 1}}
    path.write_text(json.dumps({k: v for k, v in plain.items() if k != "sha256"}))
    with pytest.raises(
        UserError, match=r"state\.json: .*new_thing is unknown.*update this program"
    ):
        State.load(folder, "cpu")


def test_another_format_is_refused(folder):
    path = folder / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(UserError, match="format 99"):
        State.load(folder, "cpu")


FLIP_SEED = 17


@pytest.mark.slow
def test_any_flipped_byte_of_the_manifest_is_found(folder):
    path, chance = folder / "state.json", random.Random(FLIP_SEED)
    content = path.read_bytes()
    for place, byte in enumerate(content):
        # a letter's other case, or another space; any byte; where a digit is, that of format 1
        for changed in {byte ^ 32, chance.randrange(256), *(b"1" if 48 <= byte < 58 else ())} - {
            byte
        }:
            path.write_bytes(content[:place] + bytes([changed]) + content[place + 1 :])
            with pytest.raises(UserError):
                read_manifest(folder)
    path.write_bytes(content)
    assert read_manifest(folder).epoch == 1


def test_cuts_of_the_manifest_are_found(folder):
    path = folder / "state.json"
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(UserError):
            read_manifest(folder)


@pytest.mark.parametrize("group", ["weights", "optimizer"])
def test_flipped_bytes_and_cuts_of_the_tensors_are_found(folder, group):
    (path,) = folder.glob(f"{group}-*")
    content, chance = path.read_bytes(), random.Random(FLIP_SEED)
    places = [0, 7, 8, len(content) - 1, *(chance.randrange(len(content)) for _ in range(16))]
    for place in places:
        changed = content[place] ^ chance.randrange(1, 256)
        for damaged in (
            content[:place] + bytes([changed]) + content[place + 1 :],
            content[:place],
        ):
            path.write_bytes(damaged)
            with pytest.raises(UserError, match="differs from its checksum"):
                State.load(folder, "cpu")


def test_a_manifest_without_a_checksum_is_of_format_1_and_is_read(folder):
    path = folder / "state.json"
    plain = json.loads(path.read_text())
    del plain["sha256"]
    path.write_text(json.dumps({**plain, "format": 1}, indent=1))
    assert State.load(folder, "cpu").epoch == 1
    path.write_text(json.dumps(plain, indent=1))  # of format 2 the checksum is a part
    with pytest.raises(UserError, match="damaged"):
        State.load(folder, "cpu")


# Finding ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [
        ".",  # the checkpoint itself
        "checkpoint",  # a run of `train`, a full training
        "artifacts/checkpoint",  # a model downloaded from MLflow
        "state",  # a checkpoint of a trial, as older versions wrote it
        "checkpoint_000007",  # a trial
        "checkpoint_000007/state",
    ],
)
def test_find_checkpoint(folder, tmp_path, place):
    run = tmp_path / "run"
    shutil.copytree(folder, run / place)
    assert find_checkpoint(run) == run / place
    assert State.load(find_checkpoint(run), "cpu").epoch == 1


def test_find_checkpoint_takes_a_trials_newest(folder, tmp_path):
    trial = tmp_path / "00003"
    for name in ("checkpoint_000009", "checkpoint_000010/state", "checkpoint_000002"):
        shutil.copytree(folder, trial / name)
    (trial / "checkpoint_000011").mkdir()  # an unfinished copy
    (trial / "checkpoint_tmp").mkdir()
    assert find_checkpoint(trial) == trial / "checkpoint_000010" / "state"


def test_find_checkpoint_says_what_it_looked_for(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "none", tmp_path / "file"):
        with pytest.raises(UserError, match=r"no checkpoint in .*state\.json") as caught:
            find_checkpoint(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# Writing ------------------------------------------------------------------------------------


def test_files_of_others_in_the_folder_are_left_alone(folder):
    others = ("metrics.json", ".metrics.json.partial", "weights.txt", "notes.partial")
    for name in others:
        (folder / name).write_text("mine")
    (folder / "weights-0123.safetensors").write_text("of an older checkpoint")
    (folder / "optimizer-0123.safetensors.partial").write_text("half a file")
    trained(epochs=2).save(folder)
    ours = {"state.json", *(entry["name"] for entry in read_manifest(folder).files.values())}
    assert {path.name for path in folder.iterdir()} == ours | set(others)


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_whole(folder, monkeypatch):
    """The training goes on: the files that the manifest named are gone, others have come."""
    new, read = trained(epochs=2), checkpoint._read_tensors

    def replaced_first(*asked):
        if new.epoch != read_manifest(folder).epoch:
            new.save(folder)
        return read(*asked)

    monkeypatch.setattr(checkpoint, "_read_tensors", replaced_first)
    networks, manifest = load_networks(folder)
    weights = networks.state_dict()
    assert manifest.epoch == 2
    assert all(torch.equal(weights[k], v) for k, v in new.networks.state_dict().items())


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_folders(folder, monkeypatch, number):
    """Some kinds of shares."""
    fsync = os.fsync

    def of_files(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(checkpoint.os, "fsync", of_files)
    trained(epochs=2).save(folder)
    assert State.load(folder, "cpu").epoch == 2


# Failing writes -----------------------------------------------------------------------------


@pytest.mark.parametrize("call", range(4))
def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_else(folder, monkeypatch, call):
    """fsync reports the full disk at each of the writes before the commit in turn."""
    before, calls = contents(folder), []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == call + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    state = trained(epochs=2)
    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        state.save(folder)
    assert contents(folder) == before
    monkeypatch.undo()
    state.save(folder)
    assert State.load(folder, "cpu").epoch == 2


def test_a_write_that_ends_half_way_leaves_the_old_checkpoint(folder):
    """A real short write: the process may not make files over 100 kB."""
    before, state = contents(folder), trained(epochs=2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match="cannot save the checkpoint"):
            state.save(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(folder) == before


def test_a_folder_that_cannot_be_made_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot save the checkpoint"):
        State.create(SMALL, images(), "cpu").save(tmp_path / "file" / "checkpoint")


KILLS = """
import os, random, signal, sys, time
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)  # no thread pool, so that fork is safe
from ali.training.state import State
from tests.ali.training.states import trained, SMALL

def mark(state):  # a checkpoint whose parts belong together, and to its step
    with torch.no_grad():
        for tensor in state.networks.state_dict().values():
            tensor.fill_(state.step)
        for optimizer in (state.optimizer_d, state.optimizer_g):
            for entry in optimizer.state.values():
                entry["exp_avg"].fill_(state.step)

folder, chance, last, killed_inside = sys.argv[1], random.Random(0), 0, 0
state = trained(SMALL.replace(width=0.25))
for _ in range(24):
    if not (child := os.fork()):
        while True:
            state.step += 1
            mark(state)
            state.save(folder)
    while last == 0 and not os.path.exists(folder + "/state.json"):
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.2))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    killed_inside += len(os.listdir(folder)) != 3
    state = State.load(folder, "cpu")
    assert state.step >= max(last, 1), (state.step, last)
    last = state.step
    for tensor in state.networks.state_dict().values():
        assert (tensor == last).all()
    for optimizer in (state.optimizer_d, state.optimizer_g):
        assert all((entry["exp_avg"] == last).all() for entry in optimizer.state.values())
state.step += 1
state.save(folder)
print(killed_inside, last, len(os.listdir(folder)))
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    """24 SIGKILLs at random moments of a process that does nothing but save."""
    done = run(KILLS, tmp_path / "checkpoint", ROOT)
    assert done.returncode == 0, done.stderr
    killed_inside, last, files = map(int, done.stdout.split())
    assert killed_inside >= 5, "the kills have to fall inside of saves to show anything"
    assert last > 5 and files == 3
