"""What activations are computed in: fp32, or bf16 where the hardware multiplies matrices in it."""

from __future__ import annotations

import torch

from ali.config import Precision
from ali.errors import UserError


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The type of activations on `device`; "auto" is bf16 where the hardware has it, else fp32.

    Raises UserError if bf16 is asked of a GPU that does not have it.
    """
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if precision == "bf16" and not has_bf16:
            raise UserError("this GPU has no bf16 arithmetic: use --precision fp32")
    else:
        has_bf16 = cpu_multiplies_bf16()
    bf16 = precision == "bf16" or (precision == "auto" and has_bf16)
    return torch.bfloat16 if bf16 else torch.float32


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU multiplies matrices in bf16: AVX512-BF16 or AMX."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
