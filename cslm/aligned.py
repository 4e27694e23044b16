"""Aligned utterances by id, kept on disk: dialogues refer to speech that lies anywhere in the shards."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType

from cslm.sequences import Chunk
from cslm.shards import read_rows


@dataclass(frozen=True)
class Word:
    """A word with the blanks and punctuation behind it, its units, and which of its characters each speaks."""

    text: str
    units: tuple[int, ...]
    spoken: tuple[int | None, ...]
    """None where the alignment does not tell."""


@dataclass(frozen=True)
class AlignedUtterance:
    """What is said, its merged units, and both in words and in chunks."""

    id: str
    language: str
    split: str
    speaker: str
    speed: float
    """1 for the recording as it is."""
    text: str
    units: list[int]
    words: list[Word]
    chunks: list[Chunk]

    @property
    def voice(self) -> tuple[str, float]:
        """What sounds alike: a speaker at one speed."""
        return self.speaker, self.speed


class AlignedUtterances:
    """An index of a folder of aligned shards in one SQLite file. Use as a context manager."""

    def __init__(self, shards: Path, index: Path) -> None:
        self._connection = sqlite3.connect(index)
        with self._connection as db:
            db.execute("PRAGMA synchronous = OFF")
            db.execute(
                "CREATE TABLE utterances (id TEXT, speed REAL, split TEXT, row TEXT, PRIMARY KEY (id, speed)) "
                "WITHOUT ROWID"
            )
            columns = [
                *("id", "language", "split", "speaker", "speed", "text"),
                *("units", "spoken", "words", "chunks"),
            ]
            db.executemany(
                "INSERT INTO utterances VALUES (?, ?, ?, ?)",
                (
                    (row["id"], row["speed"], row["split"], json.dumps(row))
                    for row in read_rows(shards, columns)
                ),
            )

    def __enter__(self) -> AlignedUtterances:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def get(self, utterance_id: str) -> AlignedUtterance | None:
        """The utterance of that id as it was recorded, or None."""
        return next((each for each in self.versions(utterance_id) if each.speed == 1), None)

    def versions(self, utterance_id: str) -> list[AlignedUtterance]:
        """The utterance of that id at all its speeds, the slowest first."""
        query = "SELECT row FROM utterances WHERE id = ? ORDER BY speed"
        return [_read(row) for (row,) in self._connection.execute(query, (utterance_id,))]

    def of_split(self, split: str) -> Iterator[list[AlignedUtterance]]:
        """All utterances of a split, each at all its speeds, in order of id."""
        query = "SELECT row FROM utterances WHERE split = ? ORDER BY id, speed"
        rows = (_read(row) for (row,) in self._connection.execute(query, (split,)))
        for _, versions in groupby(rows, lambda utterance: utterance.id):
            yield list(versions)


def _read(text: str) -> AlignedUtterance:
    row = json.loads(text)
    units, spoken = row["units"], row.pop("spoken")
    words, end = [], 0
    for word in row["words"]:
        begin, end = end, end + len(word["text"])
        first, last = word["first"], word["last"]
        heard = tuple(at - begin if at is not None and begin <= at < end else None for at in spoken[first:last])
        words.append(Word(word["text"], tuple(units[first:last]), heard))
    row["words"] = words
    row["chunks"] = [Chunk(c["text"], tuple(units[c["first"] : c["last"]])) for c in row["chunks"]]
    return AlignedUtterance(**row)
