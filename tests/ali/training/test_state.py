"""States: exact across processes, rebuilt from their own checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ali.data import Images
from ali.errors import UserError
from ali.training import step
from ali.training.state import State, load_networks
from tests.ali.training.states import SMALL, contents, images, run, trained
from tests.paths import ROOT

CONTINUE = """
import sys, torch
from ali.training import step
from ali.training.state import State
sys.path.insert(0, sys.argv[3])
from tests.ali.training.states import images
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
    networks, manifest = load_networks(folder)
    assert manifest.config == SMALL
    assert not any(module.training for module in networks.modules())
    with pytest.raises(UserError, match="lacks optimizer-"):
        State.load(folder, "cpu")
