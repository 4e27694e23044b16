"""Finite scalar quantisation (Mentzer et al., arXiv 2309.15505): no codebook, so none to collapse."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

EPSILON = 1e-3
SPREAD = 0.5
"""Twice the variance of the Gaussian by which a frame belongs to a level, in levels squared."""


class FiniteScalarQuantizer(nn.Module):
    """Bounds each of len(levels) dimensions and rounds it to one of its levels.

    A unit is the mixed-radix number of its levels, so there are prod(levels) units.
    """

    half_width: Tensor
    radix: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if min(levels, default=0) < 2:
            raise ValueError(f"levels {list(levels)}: each dimension needs at least 2")
        self.levels = tuple(levels)
        self.units = math.prod(levels)
        self.register_buffer("half_width", torch.tensor([level // 2 for level in levels]), persistent=False)
        radix = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("radix", torch.tensor(radix), persistent=False)

    def bound(self, z: Tensor) -> Tensor:
        """z (..., D) squeezed into the range of the levels, before rounding."""
        levels = torch.tensor(self.levels, dtype=z.dtype, device=z.device)
        half = (levels - 1) * (1 + EPSILON) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        return torch.tanh(z + torch.atanh(offset / half)) * half - offset

    def forward(self, z: Tensor, quantize: bool = True) -> Tensor:
        """Codes (..., D) in about [-1, 1]; gradients pass the rounding straight through."""
        bounded = self.bound(z)
        if quantize:
            bounded = bounded + (bounded.round() - bounded).detach()
        return bounded / self.half_width

    def usage_entropy(self, bounded: Tensor) -> Tensor:
        """How evenly frames `bounded` (N, D) spread over all units: 1 if each is as likely as any, 0 if one is.

        A frame belongs to a level by a Gaussian of its distance, so that the figure has a gradient
        (the entropy term of look-up free quantisation, arXiv 2310.05737).
        """
        joint = bounded.new_ones(len(bounded), 1)
        for i, level in enumerate(self.levels):
            grid = torch.arange(level, device=bounded.device) - level // 2
            share = (-((bounded[:, i, None] - grid) ** 2) / SPREAD).softmax(-1)
            joint = (joint[:, :, None] * share[:, None, :]).flatten(1)
        usage = joint.mean(0)
        return -(usage * usage.clamp_min(1e-9).log()).sum() / math.log(self.units)

    def to_units(self, codes: Tensor) -> Tensor:
        """codes (..., D) -> unit numbers (...)."""
        digits = (codes * self.half_width + self.half_width).round().long()
        return (digits * self.radix).sum(-1)

    def to_codes(self, units: Tensor) -> Tensor:
        """Unit numbers (...) -> codes (..., D): the inverse of `to_units`."""
        levels = torch.tensor(self.levels, device=units.device)
        digits = units[..., None] // self.radix % levels
        return (digits - self.half_width) / self.half_width
