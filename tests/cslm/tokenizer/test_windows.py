"""Long speech in windows: nothing lost, nothing twice, cut in pauses, and with context around every cut."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cslm.tokenizer.windows import CONTEXT, LONGEST, SEARCH, cut, stitch

TOTALS = st.integers(0, 5 * LONGEST)
SEEDS = st.integers(0, 999)


def loudness(total: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=total)


@given(TOTALS, SEEDS)
def test_kept_parts_cover_everything_once(total: int, seed: int) -> None:
    windows = cut(loudness(total, seed))
    kept = [unit for w in windows for unit in range(w.begin, w.end)]
    assert kept == list(range(total))
    assert stitch(windows, [np.arange(w.first, w.last) for w in windows]).tolist() == kept


@given(TOTALS, SEEDS)
def test_no_window_is_too_long_and_every_cut_has_context(total: int, seed: int) -> None:
    windows = cut(loudness(total, seed))
    for w in windows:
        assert 0 <= w.first <= w.begin < w.end <= w.last <= total
        assert w.last - w.first <= LONGEST
        assert w.begin - w.first == (CONTEXT if w.begin else 0)
        assert w.last - w.end == (CONTEXT if w.end < total else 0)
        assert w.end == total or w.last - w.first >= LONGEST - SEARCH, "cut no earlier than need be"


@given(st.integers(1, LONGEST), SEEDS)
def test_what_fits_is_one_window(total: int, seed: int) -> None:
    [window] = cut(loudness(total, seed))
    assert (window.first, window.begin, window.end, window.last) == (0, 0, total, total)


@given(st.integers(LONGEST + 1, 4 * LONGEST), SEEDS)
def test_units_beside_a_cut_come_from_the_window_where_they_lie_further_inside(total: int, seed: int) -> None:
    windows = cut(loudness(total, seed))
    for left, right in itertools.pairwise(windows):
        for unit in range(right.first, left.last):
            inside_left, inside_right = left.last - unit - 1, unit - right.first
            assert (unit < left.end) == (inside_left >= inside_right)


@given(st.integers(LONGEST + 1, 3 * LONGEST), SEEDS, st.integers(0, CONTEXT))
def test_an_encoder_that_hears_no_further_than_the_context_does_not_notice(
    total: int, seed: int, reach: int
) -> None:
    heard = np.random.default_rng(seed).integers(0, 99, total)

    def encode(part: np.ndarray) -> np.ndarray:
        """Each unit is the sum of all within reach, and nothing lies beyond the ends."""
        sums = np.concatenate([[0], np.cumsum(part)])
        at = np.arange(len(part))
        return sums[np.minimum(at + reach + 1, len(part))] - sums[np.maximum(at - reach, 0)]

    windows = cut(loudness(total, seed))
    stitched = stitch(windows, [encode(heard[w.first : w.last]) for w in windows])
    assert stitched.tolist() == encode(heard).tolist()


def test_cuts_lie_in_the_middle_of_pauses_and_a_plosive_is_none() -> None:
    loud = np.ones(1400)
    latest = LONGEST - CONTEXT
    pause = latest - SEARCH + 40
    loud[pause : pause + 11] = 0
    loud[latest - 30] = -2  # quieter than the pause, but one unit long
    first, second, *_ = cut(loud)
    assert pause + 2 <= first.end == second.begin <= pause + 8


def test_without_any_pause_windows_are_as_long_as_they_can_be() -> None:
    assert [(w.first, w.last) for w in cut(np.zeros(2000))] == [(0, 750), (650, 1400), (1300, 2000)]
