"""What activations are computed in: fp32, or bf16 where the hardware multiplies matrices in it."""

from __future__ import annotations

import torch

from ali.config import Precision
from ali.errors import UserError


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The type of activations on `device`; "auto" is bf16 where the hardware has it, else fp32.

    Raises UserError if bf16 is asked of a GPU that does not have it.
    """
    if lacks_bf16(precision, device):  # a resume and sweeps/best.py take no other precision
        raise UserError(
            "this GPU has no bf16 arithmetic, in which the networks are to be trained: use one "
            "that has it, or start a new run or sweep with --precision fp32"
        )
    bf16 = precision == "bf16" or (precision == "auto" and _multiplies_bf16(device))
    return torch.bfloat16 if bf16 else torch.float32


def lacks_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether bf16 is asked of a GPU that does not have it. Any CPU computes in it, if slowly."""
    return precision == "bf16" and device.type == "cuda" and not _multiplies_bf16(device)


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return cpu_multiplies_bf16()


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU multiplies matrices in bf16: AVX512-BF16 or AMX."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
