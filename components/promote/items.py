"""What single test items add to the figures, so that two versions can be compared item by item.

The evaluation writes all that a version said into its report (`transcripts.jsonl`, `dialogues.jsonl`), which is
registered with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cslm.evaluation.held_out import place_of

TRANSCRIPTS, DIALOGUES = "transcripts.jsonl", "dialogues.jsonl"
EDITS = ("substitutions", "deletions", "insertions")
ALONE = "test"
"""The split whose figures stand without its name."""

Items = dict[str, tuple[float, float]]
"""Id of an item -> what it adds to the numerator and to the denominator of a rate."""


def read_items(transcripts: Path, dialogues: Path) -> dict[str, Items]:
    """Items of each figure, by its name in the evaluation: `asr.en.wer`, `dev.cross_lingual.en_zh.off_target`.

    An error rate goes by both names, `wer` and `cer`: only the rules of its language know the right one.

    Raises:
        OSError: a file is missing.
    """
    figures: dict[str, Items] = {}
    for row in _rows(transcripts):
        edits = sum(row[edit] for edit in EDITS)
        for metric in ("wer", "cer"):
            name = f"{_split(row)}asr.{row['language']}.{metric}"
            figures.setdefault(name, {})[row["id"]] = (edits, row["length"])
    for row in _rows(dialogues):
        asked, wanted = row["question_language"], row["answer_language"]
        pair = ".".join(place_of(asked, wanted))
        for metric in ("exact_match", "off_target"):
            figures.setdefault(f"{_split(row)}{pair}.{metric}", {})[row["id"]] = (row[metric], 1)
    return figures


def _split(row: dict[str, Any]) -> str:
    return "" if row["split"] == ALONE else f"{row['split']}."


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)
