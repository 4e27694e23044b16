"""Drift: how far the distribution of a statistic is from that of the last accepted version.

A version is remembered as quantiles, which take 2 kB where the values would take megabytes. The distance
is Kolmogorov and Smirnov's: the largest difference of the two cumulative distributions, 0 to 1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

QUANTILES = 201
CRITICAL = 1.63
"""Of the two-sample test at 1 %: two samples of n and m rows of one distribution seldom differ by more
than 1.63 sqrt((n + m) / (n m))."""


def remember(values: npt.NDArray[np.float64]) -> dict[str, Any]:
    """`{"rows": n, "quantiles": [...]}` of (n,) values, n > 0."""
    return {
        "rows": len(values),
        "quantiles": [round(q, 4) for q in np.quantile(values, np.linspace(0, 1, QUANTILES)).tolist()],
    }


def distance(values: npt.NDArray[np.float64], remembered: dict[str, Any]) -> float:
    """Kolmogorov-Smirnov distance of (n,) values, n > 0, to a remembered distribution."""
    return _distance(np.asarray(remember(values)["quantiles"]), np.asarray(remembered["quantiles"]))


def _distance(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """The largest gap of two empirical distributions, looked for at and just before every jump."""
    points = np.concatenate([a, b])
    gaps = [
        np.searchsorted(a, points, side) / len(a) - np.searchsorted(b, points, side) / len(b)
        for side in ("left", "right")
    ]
    return float(np.abs(gaps).max())


def allowed(rows: int, remembered: dict[str, Any], limit: float) -> float:
    """`limit`, or more where so few rows differ by chance alone."""
    there = int(remembered["rows"])
    return max(limit, CRITICAL * math.sqrt((rows + there) / (rows * there)))
