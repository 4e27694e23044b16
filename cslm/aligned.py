"""Aligned utterances by id, kept on disk: dialogues refer to speech that lies anywhere in the shards."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from cslm.sequences import Chunk
from cslm.shards import read_rows


@dataclass(frozen=True)
class Word:
    """A word with the blanks and punctuation behind it, its units, and the character that each unit speaks."""

    text: str
    units: tuple[int, ...]
    spoken: tuple[str, ...]


@dataclass(frozen=True)
class AlignedUtterance:
    """What is said, its merged units, and both in words and in chunks."""

    id: str
    language: str
    split: str
    speaker: str
    text: str
    units: list[int]
    words: list[Word]
    chunks: list[Chunk]


class AlignedUtterances:
    """An index of a folder of aligned shards in one SQLite file. Use as a context manager."""

    def __init__(self, shards: Path, index: Path) -> None:
        self._connection = sqlite3.connect(index)
        with self._connection as db:
            db.execute("PRAGMA synchronous = OFF")
            db.execute("CREATE TABLE utterances (id TEXT PRIMARY KEY, split TEXT, row TEXT) WITHOUT ROWID")
            columns = ["id", "language", "split", "speaker", "text", "units", "spoken", "words", "chunks"]
            db.executemany(
                "INSERT INTO utterances VALUES (?, ?, ?)",
                ((row["id"], row["split"], json.dumps(row)) for row in read_rows(shards, columns)),
            )

    def __enter__(self) -> AlignedUtterances:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def get(self, utterance_id: str) -> AlignedUtterance | None:
        """The utterance of that id, or None."""
        found = self._connection.execute("SELECT row FROM utterances WHERE id = ?", (utterance_id,))
        row = found.fetchone()
        return _read(row[0]) if row else None

    def of_split(self, split: str) -> Iterator[AlignedUtterance]:
        """All utterances of a split, in order of id."""
        query = "SELECT row FROM utterances WHERE split = ? ORDER BY id"
        for (row,) in self._connection.execute(query, (split,)):
            yield _read(row)


def _read(text: str) -> AlignedUtterance:
    row = json.loads(text)
    units, spoken = row["units"], row.pop("spoken")
    row["words"] = [
        Word(word["text"], tuple(units[first:last]), tuple(spoken[first:last]))
        for word in row["words"]
        for first, last in [(word["first"], word["last"])]
    ]
    row["chunks"] = [Chunk(c["text"], tuple(units[c["first"] : c["last"]])) for c in row["chunks"]]
    return AlignedUtterance(**row)
