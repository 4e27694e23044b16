"""Precision of matrix products."""

from __future__ import annotations

import torch


def half_precision(wanted: bool = True, device: str = "cpu") -> torch.autocast:
    """Matrix products in bfloat16 where `device` (`cpu`, `cuda`) has instructions for it, else all in float32.

    Weights, sums and everything else stay in float32; with AVX512-BF16 products are twice as fast.
    """
    if device == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device, torch.bfloat16, enabled=wanted and able)
