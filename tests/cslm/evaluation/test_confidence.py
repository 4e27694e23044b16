"""Intervals hold the truth about as often as they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cslm.evaluation.confidence import bootstrap, difference, wilson


def test_the_bootstrap_covers_a_known_mean() -> None:
    rng = np.random.default_rng(7)
    trials, covered = 120, 0
    for trial in range(trials):
        low, high = bootstrap(rng.exponential(2.0, 80).tolist(), [1.0] * 80, seed=trial)
        covered += low <= 2.0 <= high
    assert (
        0.86 <= covered / trials <= 1.0
    )  # promised 0.95; the percentile interval of 80 skewed items gives less


def test_the_bootstrap_is_as_wide_as_the_central_limit_theorem_says() -> None:
    values = np.random.default_rng(3).normal(10, 2, 400)
    low, high = bootstrap(values.tolist(), [1.0] * 400, seed=1)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_items_stay_whole() -> None:
    """Ten errors in one of ten utterances are far less certain than one error in each."""
    gathered = bootstrap([10] + [0] * 9, [10] * 10, seed=1)
    even = bootstrap([1] * 10, [10] * 10, seed=1)
    assert even == [0.1, 0.1]
    assert gathered[0] == 0.0
    assert gathered[1] >= 0.2


def test_the_same_seed_gives_the_same_interval() -> None:
    assert bootstrap([1, 0, 2], [3, 4, 5], seed=5) == bootstrap([1, 0, 2], [3, 4, 5], seed=5)


def test_nothing_to_resample() -> None:
    with pytest.raises(ValueError, match="positive denominator"):
        bootstrap([], [], seed=1)
    with pytest.raises(ValueError, match="at least one item"):
        wilson(0, 0)


def test_wilson_against_published_values() -> None:
    """Newcombe (1998), Statistics in Medicine 17, table I, method 3: 81/263, 15/148, 0/20, 1/29."""
    assert wilson(81, 263) == pytest.approx([0.2553, 0.3662], abs=5e-5)
    assert wilson(15, 148) == pytest.approx([0.0624, 0.1605], abs=5e-5)
    assert wilson(0, 20) == pytest.approx([0.0, 0.1611], abs=5e-5)
    assert wilson(1, 29) == pytest.approx([0.0061, 0.1718], abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share(counts: tuple[int, int]) -> None:
    successes, n = counts
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n + 1e-5
    assert successes / n - 1e-5 <= high <= 1


def test_the_interval_of_a_difference_is_newcombes() -> None:
    # Newcombe (1998), Statistics in Medicine 17:873, table II, example a, method 10: 56/70 - 48/80.
    low, high = difference(48 / 80, wilson(48, 80), 56 / 70, wilson(56, 70))
    assert (low, high) == (pytest.approx(0.0524, abs=1e-4), pytest.approx(0.3339, abs=1e-4))
