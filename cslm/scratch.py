"""A database on disk for what would not fit into memory, for as long as it is needed."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path


@contextmanager
def scratch_database(folder: Path) -> Iterator[sqlite3.Connection]:
    """A database in `folder` for the length of a block, whose only content is `database.sqlite`.

    Nothing of it outlives the block, so it does without a journal.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix="scratch-") as scratch,
        closing(sqlite3.connect(f"{scratch}/database.sqlite", isolation_level=None)) as database,
    ):
        for setting in ("journal_mode = OFF", "synchronous = OFF"):
            database.execute(f"PRAGMA {setting}")
        yield database


def file_of(database: sqlite3.Connection) -> Path:
    """Where a database lies."""
    return Path(database.execute("PRAGMA database_list").fetchone()[2])
