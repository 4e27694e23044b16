"""Merged runs give the frames back."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cslm.units import expand_runs, merge_runs


@given(st.lists(st.integers(0, 3), max_size=200))
def test_expanding_merged_runs_gives_the_frames_back(frames: list[int]) -> None:
    units, durations = merge_runs(frames)
    assert expand_runs(units, durations).tolist() == frames
    assert units == [unit for unit, _ in itertools.groupby(frames)]


@pytest.mark.parametrize("durations", [[1], [1, 0], [1, 2, 3]])
def test_durations_must_fit_the_units(durations: list[int]) -> None:
    with pytest.raises(ValueError, match="durations"):
        expand_runs([5, 6], durations)
