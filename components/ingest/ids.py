"""The ids that a corpus has used up, on disk: a set of them would need 120 bytes of memory for each row."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager

from components.stage import home


class Ids:
    """A set of ids in a database; `Ids.scratch` makes one and removes it.

    The database answers from its own cache of 2 MB and the system's of the file, and nothing of it outlives
    the stage, so it is not asked to survive a crash.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        for setting in ("journal_mode = OFF", "synchronous = OFF"):
            database.execute(f"PRAGMA {setting}")
        database.execute("CREATE TABLE ids (id TEXT PRIMARY KEY) WITHOUT ROWID")
        database.execute("BEGIN")  # and never an end: a transaction for each id would write each to the disk

    @classmethod
    @contextmanager
    def scratch(cls) -> Iterator[Ids]:
        """An empty set, for a block."""
        home().mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=home(), prefix="scratch-") as folder,
            closing(sqlite3.connect(f"{folder}/ids.sqlite", isolation_level=None)) as database,
        ):
            yield cls(database)

    def add(self, new: str) -> None:
        """Add one."""
        self._database.execute("INSERT OR IGNORE INTO ids VALUES (?)", (new,))

    def __contains__(self, asked: str) -> bool:
        return self._database.execute("SELECT 1 FROM ids WHERE id = ?", (asked,)).fetchone() is not None
