"""Weights of the decoder on disk: matrices in 8 bits with a scale for each row, everything else in 16.

A file is a safetensors; `NAME.scale` (rows,) in float16 belongs to the int8 `NAME`. What was loaded gives the
same file again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SCALE = ".scale"
LARGEST = 127
SMALLEST_SCALE = 2.0**-24
"""Of float16: for a row of zeros."""


def save_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dictionary."""
    stored: dict[str, Tensor] = {}
    for name, weight in state.items():
        weight = weight.detach().float()
        if weight.ndim < 2:
            stored[name] = weight.half().contiguous()
            continue
        scale = (weight.flatten(1).abs().amax(1) / LARGEST).clamp_min(SMALLEST_SCALE).half()
        steps = weight / scale.float().view(-1, *[1] * (weight.ndim - 1))
        stored[name] = steps.round().clamp(-LARGEST, LARGEST).to(torch.int8).contiguous()
        stored[name + SCALE] = scale
    save_file(stored, path)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dictionary, in float32; files with 16 bits throughout are read too.

    Raises:
        FileNotFoundError: there is no such file.
    """
    stored = load_file(path)
    weights = {}
    for name, weight in stored.items():
        if name.endswith(SCALE) and name.removesuffix(SCALE) in stored:
            continue
        scale = stored.get(name + SCALE) if weight.dtype == torch.int8 else None
        weights[name] = (
            weight.float() if scale is None else weight * scale.float().view(-1, *[1] * (weight.ndim - 1))
        )
    return weights
