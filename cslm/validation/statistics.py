"""Statistics of a table's rows in a database on disk, so that memory stays flat however many rows there are."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

AT_ONCE = 4096
TYPES = {int: "INTEGER", float: "REAL"}
"""SQLite's type of a column by that of its first value; TEXT for all else."""

Reason = tuple[int, str]
"""Number of a row in its table, and why it is refused."""


class Statistics:
    """The table `name` of a database: a row of statistics for each row of a corpus' table.

    Beside the statistics it has the columns `number`, the row's place from 0 on, and `reason`, why the row is
    refused, null where it is not. Rows without a reason are accepted.
    """

    def __init__(self, database: sqlite3.Connection, name: str) -> None:
        self.database, self.name = database, name
        self.columns: list[str] = []
        self.rows = 0

    def add(self, rows: Iterable[tuple[Mapping[str, Any], str]]) -> None:
        """Store statistics and reason (empty: none) of all rows, in their order."""
        stream = iter(rows)
        while chunk := list(islice(stream, AT_ONCE)):
            if not self.columns:
                self._create(chunk[0][0])
            places = ", ".join("?" * (len(self.columns) + 2))
            self.database.execute("BEGIN")
            self.database.executemany(
                f"INSERT INTO {self.name} VALUES ({places})",
                (
                    (self.rows + place, *(row[column] for column in self.columns), reason or None)
                    for place, (row, reason) in enumerate(chunk)
                ),
            )
            self.database.execute("COMMIT")
            self.rows += len(chunk)

    def _create(self, row: Mapping[str, Any]) -> None:
        self.columns = list(row)
        columns = ", ".join(f"{name} {TYPES.get(type(value), 'TEXT')}" for name, value in row.items())
        self.database.execute(f"CREATE TABLE {self.name} (number INTEGER PRIMARY KEY, {columns}, reason TEXT)")

    def refuse(self, reasons: Iterable[Reason]) -> None:
        """Add reasons of checks between rows; a row that is refused already keeps its own."""
        if not (found := [(reason, number) for number, reason in reasons]):
            return
        self.database.execute("BEGIN")
        self.database.executemany(
            f"UPDATE {self.name} SET reason = ? WHERE number = ? AND reason IS NULL", found
        )
        self.database.execute("COMMIT")

    @property
    def refused(self) -> int:
        """How many rows have a reason."""
        return int(self.database.execute(f"SELECT count(reason) FROM {self.name}").fetchone()[0]) if self else 0

    @property
    def accepted(self) -> int:
        """How many rows have none."""
        return self.rows - self.refused

    def __bool__(self) -> bool:
        return self.rows > 0

    def reasons(self) -> Iterator[str | None]:
        """The reason of each row, in their order."""
        if self:
            yield from (
                why for (why,) in self.database.execute(f"SELECT reason FROM {self.name} ORDER BY number")
            )

    def ask(self, what: str, *values: Any) -> list[tuple[Any, ...]]:
        """Result of `SELECT what`, where {accepted} are the accepted rows; nothing of an empty table."""
        if not self:
            return []
        accepted = f"(SELECT * FROM {self.name} WHERE reason IS NULL)"
        return self.database.execute(f"SELECT {what.format(accepted=accepted)}", values).fetchall()

    def groups(self, *columns: str) -> list[tuple[str, ...]]:
        """What accepted rows have in these columns, each once, in order."""
        names = ", ".join(columns)
        return self.ask(f"DISTINCT {names} FROM {{accepted}} ORDER BY {names}")

    def values(self, column: str, where: Mapping[str, str]) -> npt.NDArray[np.float64]:
        """(n,) a statistic of the accepted rows that have these values."""
        wanted = " AND ".join(f"{name} = ?" for name in where)
        found = self.database.execute(
            f"SELECT {column} FROM {self.name} WHERE reason IS NULL AND {wanted} ORDER BY number",
            tuple(where.values()),
        )
        return np.fromiter((value for (value,) in found), np.float64)
