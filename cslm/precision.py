"""Precision of matrix products on a processor."""

from __future__ import annotations

import torch


def half_precision(wanted: bool = True) -> torch.autocast:
    """Matrix products in bfloat16 where the processor has instructions for it, else all in float32.

    Weights, sums and everything else stay in float32; with AVX512-BF16 products are twice as fast.
    """
    return torch.autocast("cpu", torch.bfloat16, enabled=wanted and torch.cpu._is_avx512_bf16_supported())
