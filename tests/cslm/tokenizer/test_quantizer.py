"""Finite scalar quantisation against its definition."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cslm.tokenizer.quantizer import FiniteScalarQuantizer

LEVELS = st.lists(st.integers(2, 8), min_size=1, max_size=4)


@given(LEVELS)
def test_units_and_codes_are_one_to_one(levels: list[int]) -> None:
    quantizer = FiniteScalarQuantizer(levels)
    units = torch.arange(quantizer.units)
    codes = quantizer.to_codes(units)
    assert quantizer.to_units(codes).tolist() == units.tolist()
    assert len(torch.unique(codes, dim=0)) == quantizer.units


@given(LEVELS, st.integers(0, 99))
def test_every_output_is_one_of_the_codes(levels: list[int], seed: int) -> None:
    quantizer = FiniteScalarQuantizer(levels)
    z = 4 * torch.randn(50, len(levels), generator=torch.Generator().manual_seed(seed))
    codes = quantizer(z)
    grid = [torch.tensor([(i - level // 2) / (level // 2) for i in range(level)]) for level in levels]
    known = torch.tensor(list(itertools.product(*grid)))
    assert (codes[:, None] - known).abs().amax(-1).amin(1).max() < 1e-5


def test_gradients_pass_the_rounding() -> None:
    z = torch.zeros(1, 3, requires_grad=True)
    FiniteScalarQuantizer([8, 8, 8])(z).sum().backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None and (z.grad > 0).all()


def test_a_dimension_needs_two_levels() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        FiniteScalarQuantizer([8, 1])


def test_usage_is_even_when_every_unit_is_used_and_low_when_one_is() -> None:
    quantizer = FiniteScalarQuantizer([8, 8])
    everywhere = quantizer.to_codes(torch.arange(64)) * quantizer.half_width
    half = everywhere[everywhere[:, 0] < 0]
    even, halved, one = (
        float(quantizer.usage_entropy(frames)) for frames in (everywhere, half, everywhere[:1])
    )
    assert even > 0.98
    assert one < halved - 0.3 < even - 0.3


def test_evenness_spreads_collapsed_frames() -> None:
    quantizer = FiniteScalarQuantizer([8, 8, 8])
    z = (0.01 * torch.randn(400, 3, generator=torch.Generator().manual_seed(1))).requires_grad_()
    optimizer = torch.optim.Adam([z], 0.05)
    before = len(quantizer.to_units(quantizer(z)).unique())
    for _ in range(100):
        optimizer.zero_grad()
        (-quantizer.usage_entropy(quantizer.bound(z))).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert len(quantizer.to_units(quantizer(z)).unique()) > 4 * before
