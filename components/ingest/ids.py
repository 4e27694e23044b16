"""The ids that a corpus has used up, on disk: a set of them would need 120 bytes of memory for each row."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from components.stage import home
from cslm.scratch import scratch_database


class Ids:
    """A set of ids in a database, which answers from a cache of 2 MB; `Ids.scratch` makes and removes one."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        database.execute("CREATE TABLE ids (id TEXT PRIMARY KEY) WITHOUT ROWID")
        database.execute("BEGIN")  # and never an end: a transaction for each id would write each to the disk

    @classmethod
    @contextmanager
    def scratch(cls) -> Iterator[Ids]:
        """An empty set, for a block."""
        with scratch_database(home()) as database:
            yield cls(database)

    def add(self, new: str) -> None:
        """Add one."""
        self._database.execute("INSERT OR IGNORE INTO ids VALUES (?)", (new,))

    def __contains__(self, asked: str) -> bool:
        return self._database.execute("SELECT 1 FROM ids WHERE id = ?", (asked,)).fetchone() is not None
