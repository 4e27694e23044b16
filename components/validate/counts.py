"""What the accepted data is like, in counts: little enough for git, and what was added is the difference.

    {"speech": {"assistant.en": {"hours": 1.3, "speakers": 8, "duration_s": {"1.25": 40, "1.5": 51, ...}, ...}},
     "texts": {"dialogues": 2400, "translations": 800}}

Speech is counted for each source and language. The key of a count is the lower edge of its bin.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

BINS = {"duration_s": 0.25, "level_db": 1.0, "characters_per_second": 0.5}
"""Statistic of an utterance -> width of its bins."""


def count(utterances: pd.DataFrame, texts: Mapping[str, int]) -> dict[str, Any]:
    """Counts of accepted utterances, a row each with the statistics of `BINS`, and of rows of other tables."""
    groups = utterances.groupby(["source", "language"]) if not utterances.empty else ()
    speech = {
        f"{source}.{language}": {
            "hours": round(rows["duration_s"].sum() / 3600, 6),
            "speakers": int(rows["speaker"].nunique()),
            **{statistic: _histogram(rows[statistic], width) for statistic, width in BINS.items()},
        }
        for (source, language), rows in groups
    }
    return {"speech": speech, "texts": dict(texts)}


def _histogram(values: pd.Series, width: float) -> dict[str, int]:
    edges, counts = np.unique(np.floor(values.to_numpy(float) / width) * width, return_counts=True)
    return {f"{edge:g}": int(number) for edge, number in zip(edges, counts, strict=True)}
