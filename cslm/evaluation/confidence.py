"""95 % confidence intervals of rates over independent items (utterances, not words)."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot, sqrt

import numpy as np

RESAMPLES = 2000
RESAMPLES_AT_ONCE = 100
LEVEL = 0.95
Z = 1.959964
"""97.5th percentile of the normal distribution."""
DECIMALS = 5

Interval = list[float]


def bootstrap(numerators: Sequence[float], denominators: Sequence[float], seed: int) -> Interval:
    """Percentile bootstrap of sum(numerators) / sum(denominators) (for error rates: Bisani and Ney 2004).

    Whole items are drawn with replacement, so that the errors of one utterance stay together. A mean is the
    case of denominators that are all 1.

    Raises:
        ValueError: no items, or no denominator is above zero.
    """
    top, bottom = np.asarray(numerators, float), np.asarray(denominators, float)
    if top.shape != bottom.shape or not bottom.sum() > 0:
        raise ValueError(f"pairs with a positive denominator are needed, got {top.shape}, {bottom.shape}")
    rng = np.random.default_rng(seed)
    ratios: list[float] = []
    for _ in range(RESAMPLES // RESAMPLES_AT_ONCE):  # (R, n) at once: memory stays flat in RESAMPLES
        drawn = rng.integers(len(top), size=(RESAMPLES_AT_ONCE, len(top)))
        tops, bottoms = top[drawn].sum(1), bottom[drawn].sum(1)
        ratios += (tops[bottoms > 0] / bottoms[bottoms > 0]).tolist()
    tail = (1 - LEVEL) / 2
    return [round(float(value), DECIMALS) for value in np.quantile(ratios, [tail, 1 - tail])]


def wilson(successes: int, n: int) -> Interval:
    """Wilson (1927) score interval of a share. Unlike the bootstrap it is honest at 0 and at 1.

    Raises:
        ValueError: `n` is not positive.
    """
    if n <= 0:
        raise ValueError(f"a share needs at least one item, got n = {n}")
    share = successes / n
    center = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * sqrt(share * (1 - share) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    return [round(max(0.0, center - half), DECIMALS), round(min(1.0, center + half), DECIMALS)]


def difference(
    before: float, before_interval: Sequence[float], after: float, after_interval: Sequence[float]
) -> Interval:
    """Interval of `after - before`, taken as figures of independent samples, from the intervals of the two.

    MOVER (Zou and Donner 2008, eq. 3); for shares with Wilson intervals it is method 10 of Newcombe (1998).
    """
    middle = after - before
    return [
        middle - hypot(after - after_interval[0], before_interval[1] - before),
        middle + hypot(after_interval[1] - after, before - before_interval[0]),
    ]
