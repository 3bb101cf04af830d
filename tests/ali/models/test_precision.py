"""bf16 detection by public means, against torch's private functions."""

from pathlib import Path

import pytest
import torch

from ali.errors import UserError
from ali.models.precision import compute_dtype, cpu_multiplies_bf16

PRIVATE = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


@pytest.fixture
def torch_says():
    """What torch's own detection finds; AMX always comes with bf16."""
    if not all(hasattr(torch.cpu, name) for name in PRIVATE):
        pytest.skip("this torch has renamed its private functions")
    return any(getattr(torch.cpu, name)() for name in PRIVATE)


def test_detection_agrees_with_torch(torch_says):
    assert cpu_multiplies_bf16() == torch_says


@pytest.mark.parametrize(("found", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_follows_the_hardware(monkeypatch, found, dtype):
    monkeypatch.setattr("ali.models.precision.cpu_multiplies_bf16", lambda: found)
    cpu = torch.device("cpu")
    assert compute_dtype("auto", cpu) == dtype
    assert compute_dtype("bf16", cpu) == torch.bfloat16
    assert compute_dtype("fp32", cpu) == torch.float32


def test_precision_is_resolved_by_the_hardware():
    cpu = torch.device("cpu")
    assert compute_dtype("fp32", cpu) == torch.float32
    assert compute_dtype("bf16", cpu) == torch.bfloat16
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    has_bf16 = "avx512_bf16" in flags or "amx_bf16" in flags
    assert compute_dtype("auto", cpu) == (torch.bfloat16 if has_bf16 else torch.float32)


def test_bf16_on_a_gpu_without_it_is_the_users_mistake(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    with pytest.raises(UserError, match="--precision fp32"):
        compute_dtype("bf16", torch.device("cuda"))
    assert compute_dtype("auto", torch.device("cuda")) == torch.float32
