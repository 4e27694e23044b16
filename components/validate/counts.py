"""What the accepted data is like, in counts: little enough for git, and what was added is the difference.

    {"speech": {"assistant.en": {"hours": 1.3, "speakers": 8, "duration_s": {"1.25": 40, "1.5": 51, ...}, ...}},
     "texts": {"dialogues": 2400, "translations": 800}}

Speech is counted for each source and language. The key of a count is the lower edge of its bin.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cslm.validation.statistics import Statistics

BINS = {"duration_s": 0.25, "level_db": 1.0, "characters_per_second": 0.5}
"""Statistic of an utterance -> width of its bins."""


def count(utterances: Statistics, texts: Mapping[str, int]) -> dict[str, Any]:
    """Counts of accepted utterances, with the statistics of `BINS`, and of rows of other tables."""
    speech: dict[str, Any] = {}
    for source, language in utterances.groups("source", "language"):
        where = {"source": source, "language": language}
        [(speakers,)] = utterances.ask(
            "count(DISTINCT speaker) FROM {accepted} WHERE source = ? AND language = ?", source, language
        )
        speech[f"{source}.{language}"] = {
            "hours": round(float(utterances.values("duration_s", where).sum()) / 3600, 6),
            "speakers": speakers,
            **{name: _histogram(utterances.values(name, where), width) for name, width in BINS.items()},
        }
    return {"speech": speech, "texts": dict(texts)}


def _histogram(values: npt.NDArray[np.float64], width: float) -> dict[str, int]:
    edges, counts = np.unique(np.floor(values / width) * width, return_counts=True)
    return {f"{edge:g}": int(number) for edge, number in zip(edges, counts, strict=True)}
