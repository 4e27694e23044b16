"""The distance of two distributions, against scipy's exact two-sample statistic."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from cslm.validation.drift import allowed, distance, remember


@given(st.integers(0, 1000), st.floats(-2, 2), st.floats(0.5, 2))
def test_close_to_the_exact_statistic(seed: int, shift: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    old, new = rng.normal(size=3000), shift + scale * rng.normal(size=2000)
    exact = ks_2samp(old, new).statistic
    assert distance(new, json.loads(json.dumps(remember(old)))) == pytest.approx(exact, abs=0.015)


def test_the_same_version_has_not_drifted() -> None:
    values = np.random.default_rng(0).gamma(2, size=500)
    assert distance(values, remember(values)) == 0


def test_few_rows_may_differ_more() -> None:
    many, few = remember(np.arange(10_000.0)), remember(np.arange(10.0))
    assert allowed(10_000, many, 0.25) == 0.25
    assert allowed(10, few, 0.25) == pytest.approx(1.63 * np.sqrt(0.2))
