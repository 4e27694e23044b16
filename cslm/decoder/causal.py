"""Causal layers that work on a whole sequence or on a stream of pieces, with the same result.

Each convolution sees its input and what came before. In a stream a `Memory` keeps that past from piece to
piece, so nothing is computed twice and no edge is heard. Looking ahead by `n` frames is a delay: the output
for frame t is read at t + n, when the frames up to there are known (`Delay`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Memory:
    """What the causal layers have seen of one stream."""

    def __init__(self) -> None:
        self._past: dict[nn.Module, Tensor] = {}

    def extend(self, layer: nn.Module, piece: Tensor, width: int) -> Tensor:
        """`piece` (B, C, T) behind the last `width` frames of `layer`'s input, zeros at the start."""
        past = self._past.get(layer)
        if past is None:
            past = piece.new_zeros(*piece.shape[:-1], width)
        seen = torch.cat([past, piece], -1)
        self._past[layer] = seen[..., seen.shape[-1] - width :]
        return seen


class CausalConv(nn.Conv1d):
    """A convolution over (B, C, T) whose output at t depends on inputs up to t."""

    def __init__(self, channels: int, out: int, kernel: int, dilation: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out, kernel, dilation=dilation, groups=groups)
        self.width = (kernel - 1) * dilation

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:  # type: ignore[override]
        """(B, C, T) -> (B, out, T)."""
        x = F.pad(x, (self.width, 0)) if memory is None else memory.extend(self, x, self.width)
        return super().forward(x)


class Block(nn.Module):
    """ConvNeXt block (arXiv 2201.03545) with a causal convolution; `condition` shifts and scales the norm."""

    def __init__(self, width: int, expansion: int, kernel: int, dilation: int, condition: int = 0) -> None:
        super().__init__()
        self.convolution = CausalConv(width, width, kernel, dilation, groups=width)
        self.norm = nn.LayerNorm(width, elementwise_affine=not condition)
        self.modulation = nn.Linear(condition, 2 * width) if condition else None
        self.inner = nn.Linear(width, expansion * width)
        self.outer = nn.Linear(expansion * width, width)
        self.gain = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor, memory: Memory | None = None, condition: Tensor | None = None) -> Tensor:
        """(B, T, width), condition (B, condition) -> (B, T, width)."""
        y = self.norm(self.convolution(x.transpose(1, 2), memory).transpose(1, 2))
        if self.modulation is not None:
            scale, shift = self.modulation(condition)[:, None].chunk(2, -1)
            y = y * (1 + scale) + shift
        changed: Tensor = self.outer(F.gelu(self.inner(y)))
        return x + self.gain * changed


class Delay:
    """Cuts what a network that looks `frames` ahead gives too early, and lets a stream's end flow out."""

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self._early = frames

    def cut(self, x: Tensor) -> Tensor:
        """(B, T, C) without the first frames of the stream, which belong to no input."""
        early = min(self._early, x.shape[1])
        self._early -= early
        return x[:, early:]
