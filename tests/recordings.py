"""Real speech: questions of the sample corpus that no model was trained on."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from cslm.audio import Samples, decode
from cslm.shards import read_rows

SPEECH = Path(__file__).parents[1] / "data/sample/speech"


@functools.cache
def held_out_questions() -> list[dict[str, Any]]:
    """Rows (id, text, language, audio) of all spoken questions of the test split."""
    rows = read_rows(SPEECH, ["id", "text", "language", "audio"], ["test"])
    return sorted((row for row in rows if "-q-" in row["id"]), key=lambda row: str(row["id"]))


@functools.cache
def question() -> Samples:
    """One English question."""
    return decode(next(row["audio"] for row in held_out_questions() if row["language"] == "en"))
