"""Checkpoints: exact across processes, whole whatever kills the writer, checked on reading."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ali.config import Config
from ali.data import Images
from ali.errors import UserError
from ali.training import state as state_module
from ali.training import step
from ali.training.state import State, load_networks
from tests.paths import ROOT

SMALL = Config(width=0.125, batch_size=8, precision="fp32", epochs=4)


def images() -> Images:
    return Images(np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8), None)


def trained(config: Config = SMALL, epochs: int = 1) -> State:
    state = State.create(config, images(), "cpu")
    for _ in range(epochs):
        step.train_epoch(state, torch.from_numpy(images().x))
    return state


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A checkpoint that tests copy before they change it."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    trained().save(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    copied = tmp_path / "checkpoint"
    copied.mkdir()
    for path in saved.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    return copied


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


CONTINUE = """
import sys, torch
from ali.training import step
from ali.training.state import State
sys.path.insert(0, sys.argv[3])
from tests.ali.training.test_state import images
state = State.load(sys.argv[1], "cpu")
while state.epoch < state.config.epochs:
    step.train_epoch(state, torch.from_numpy(images().x))
state.save(sys.argv[2])
"""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resuming_in_a_new_process_changes_no_bit(precision, tmp_path):
    config = SMALL.replace(precision=precision)
    whole = trained(config, epochs=4)
    whole.save(tmp_path / "whole")
    trained(config, epochs=2).save(tmp_path / "half")
    done = run(CONTINUE, tmp_path / "half", tmp_path / "resumed", ROOT)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")
    assert contents(tmp_path / "half") != contents(tmp_path / "whole")


def test_a_checkpoint_rebuilds_everything_from_its_own_metadata(folder):
    state, again = trained(), State.load(folder, "cpu")
    assert (again.config, again.epoch, again.step) == (state.config, 1, 5)
    assert torch.equal(again.generator.get_state(), state.generator.get_state())
    for name, tensor in state.networks.state_dict().items():
        assert torch.equal(again.networks.state_dict()[name], tensor)
        assert again.networks.state_dict()[name].stride() == tensor.stride()
    for a, b in [
        (again.optimizer_d, state.optimizer_d),
        (again.optimizer_g, state.optimizer_g),
    ]:
        for old, new in zip(b.state.values(), a.state.values(), strict=True):
            assert all(torch.equal(old[key], new[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    assert all(module.training for module in again.networks.modules())


def test_an_untrained_state_saves_too(tmp_path):
    state = State.create(SMALL, images(), "cpu")
    state.save(tmp_path / "new")
    again = State.load(tmp_path / "new", "cpu")
    x = torch.from_numpy(images().x)
    assert step.train_epoch(again, x)["d_loss"] == step.train_epoch(state, x)["d_loss"]


def test_images_of_another_size_are_the_users_mistake():
    with pytest.raises(UserError, match=r"\(64, 64, 3\); .* house-numbers take \(32, 32, 3\)"):
        State.create(SMALL, Images(np.zeros((9, 64, 64, 3), np.uint8), None), "cpu")


def test_the_decoder_starts_at_the_mean_of_the_images():
    state = State.create(SMALL, images(), "cpu")
    bias = state.networks.decoder.layers.rows[-1].bias
    mean = torch.from_numpy(images().x.mean(axis=0) / 255).permute(2, 0, 1)
    assert bias is not None and torch.allclose(bias.sigmoid(), mean.float(), atol=1e-5)


def test_there_is_no_pickle_and_no_litter(folder):
    state = State.load(folder, "cpu")
    for _ in range(2):
        step.train_epoch(state, torch.from_numpy(images().x))
        state.save(folder)
    names = sorted(path.name for path in folder.iterdir())
    assert [name.split("-")[0] for name in names] == ["optimizer", "state.json", "weights"]
    assert names[0].endswith(".safetensors") and names[2].endswith(".safetensors")
    assert State.load(folder, "cpu").epoch == 3


def test_epochs_and_evaluation_may_change_but_not_the_experiment(folder):
    assert State.load(folder, "cpu", SMALL.replace(epochs=9, draws=7)).config.epochs == 9
    with pytest.raises(UserError, match=r"lr_d 0\.0001 → 0\.001"):
        State.load(folder, "cpu", SMALL.replace(lr_d=1e-3, epochs=9))


def test_networks_load_without_the_optimiser(folder):
    for path in folder.glob("optimizer-*"):
        path.unlink()
    networks, config = load_networks(folder)
    assert config == SMALL
    assert not any(module.training for module in networks.modules())
    with pytest.raises(UserError, match="lacks optimizer-"):
        State.load(folder, "cpu")


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


def test_another_format_is_refused(folder):
    path = folder / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(UserError, match="format 99"):
        State.load(folder, "cpu")


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
    monkeypatch.setattr(state_module.os, "fsync", full)
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
from tests.ali.training.test_state import trained, SMALL

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
