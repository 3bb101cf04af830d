"""What was trained in bf16, on a GPU that has no bf16 arithmetic."""

import pytest
import torch

from ali.cli.checkpoints import load_networks as of_command
from ali.errors import UserError
from ali.experiment import facts
from ali.training.state import State, load_networks
from tests.ali.training.states import SMALL, images, trained


@pytest.fixture
def in_bf16(tmp_path, monkeypatch):
    """A checkpoint trained in bf16; then the GPU, which has none, is made up: its networks stay."""
    folder = tmp_path / "checkpoint"
    trained(SMALL.replace(precision="bf16"), epochs=0).save(folder)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.nn.Module, "to", lambda networks, device: networks)
    return folder


def dtype_of(networks):
    return networks.decoder.dtype


def test_networks_are_used_in_fp32_with_a_note(in_bf16, caplog):
    networks, manifest = load_networks(in_bf16, "cuda")
    assert dtype_of(networks) == torch.float32 and manifest.config.precision == "bf16"
    assert "trained in bf16, which this GPU lacks: used in fp32" in caplog.text
    caplog.clear()
    assert dtype_of(load_networks(in_bf16, "cuda", "fp32")[0]) == torch.float32
    assert dtype_of(load_networks(in_bf16, "cpu")[0]) == torch.bfloat16
    assert caplog.text == ""
    with pytest.raises(UserError, match="use --precision fp32"):
        load_networks(in_bf16, "cuda", "bf16")


def test_a_command_takes_another_precision(in_bf16, monkeypatch, caplog):
    monkeypatch.setattr("ali.training.step.device", lambda: torch.device("cuda"))
    assert dtype_of(of_command(in_bf16, "fp32")[0]) == torch.float32
    assert caplog.text == "", "no note on what was asked for"
    assert dtype_of(of_command(in_bf16, None)[0]) == torch.float32


def test_training_in_bf16_takes_another_gpu_or_a_new_run(in_bf16, monkeypatch):
    """A resume and best.py, which computes the facts first, have no other precision."""
    monkeypatch.setattr("ali.training.step.device", lambda: torch.device("cuda"))
    config = SMALL.replace(precision="bf16")
    for begin in (
        lambda: State.load(in_bf16, "cuda"),
        lambda: State.create(config, images(), "cuda"),
        lambda: facts(config),
    ):
        with pytest.raises(UserError, match="use one that has it, or start a new run or sweep"):
            begin()


def test_what_was_trained_with_auto_needs_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("ali.models.precision.cpu_multiplies_bf16", lambda: True)
    state = trained(SMALL.replace(precision="auto"), epochs=0)
    assert dtype_of(state.networks) == torch.bfloat16
    state.save(tmp_path)
    monkeypatch.setattr("ali.models.precision.cpu_multiplies_bf16", lambda: False)
    assert dtype_of(load_networks(tmp_path)[0]) == torch.float32
    assert dtype_of(State.load(tmp_path, "cpu").networks) == torch.float32
