"""The three tables of all corpora as streams of statistics, and back into accepted and quarantined rows.

Two passes: the first measures every row (it alone decodes audio), the second sorts the rows. Memory holds
one row group; statistics and reasons are in a database on disk.
"""

from __future__ import annotations

import csv
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.stage import StageFailed
from cslm.shards import ROWS_PER_GROUP, UTTERANCE, ShardWriter, read_rows
from cslm.tables import DIALOGUE, ORIGIN, REJECTED, TRANSLATION, read_table, table_writer
from cslm.validation.checks import Check, refusals, statistics_of_texts, statistics_of_utterance
from cslm.validation.signal import measure
from cslm.validation.statistics import Statistics

PROGRESS_S = 5.0
THREADS = 2
REFUSED_COLUMNS = ("table", "id", "file", "reason")
SIDES = {"dialogues": ("question", "answer"), "translations": ("source", "target")}
SCHEMAS = {"utterances": UTTERANCE, "dialogues": DIALOGUE, "translations": TRANSLATION}

Corpora = Mapping[str, Path]


def check_schemas(corpora: Corpora) -> None:
    """Every file of every corpus has the schema that all stages rely on.

    Raises:
        StageFailed: one has not; the message names the file and the difference.
    """
    for folder in corpora.values():
        paths = [(path, UTTERANCE) for path in sorted((folder / "utterances").glob("*.parquet"))]
        paths += [(folder / f"{table}.parquet", SCHEMAS[table]) for table in SIDES]
        paths += [(folder / "origins.parquet", ORIGIN), (folder / "rejected.parquet", REJECTED)]
        for path, schema in paths:
            if not path.is_file():
                raise StageFailed(f"{path} is missing; run python -m components.ingest for this corpus")
            there = pq.read_schema(path)
            if not there.equals(schema):
                fields = set(map(str, schema)) ^ set(map(str, there))
                raise StageFailed(f"{path}: its schema differs in {', '.join(sorted(fields))}; ingest again")


def rows_of(table: str, corpora: Corpora) -> Iterator[dict[str, Any]]:
    """Stream a table's rows, corpus after corpus; the same order in every pass."""
    for folder in corpora.values():
        if table == "utterances":
            yield from read_rows(folder / "utterances")
        else:
            yield from read_table(folder / f"{table}.parquet")


def measure_utterances(
    corpora: Corpora, checks: Sequence[Check], max_duration_s: float, database: sqlite3.Connection
) -> Statistics:
    """Decode and measure every utterance."""

    def statistics() -> Iterator[dict[str, Any]]:
        rows = rows_of("utterances", corpora)
        with ThreadPoolExecutor(THREADS) as pool:  # libsndfile decodes outside of Python's lock
            while group := list(islice(rows, ROWS_PER_GROUP)):
                signals = pool.map(lambda row: measure(row["audio"], max_duration_s), group)
                yield from map(statistics_of_utterance, group, signals)

    measured = Statistics(database, "utterances")
    measured.add(_judged(statistics(), checks, "utterances"))
    return measured


def measure_texts(
    table: str, corpora: Corpora, checks: Sequence[Check], database: sqlite3.Connection
) -> Statistics:
    """Measure every dialogue or translation."""
    measured = Statistics(database, table)
    rows = rows_of(table, corpora)
    measured.add(_judged((statistics_of_texts(row, SIDES[table]) for row in rows), checks, table))
    return measured


def _judged(
    statistics: Iterator[dict[str, Any]], checks: Sequence[Check], table: str
) -> Iterator[tuple[dict[str, Any], str]]:
    """Statistics, each with the reason against its row; a line now and then says how far it is."""
    told, refused = time.monotonic(), 0
    for number, row in enumerate(statistics, 1):
        reason = refusals(checks, row)
        refused += bool(reason)
        yield row, reason
        if time.monotonic() - told > PROGRESS_S:
            told = time.monotonic()
            print(f"progress: {number} {table}, {refused} refused", flush=True)


def sort_rows(measured: Statistics, corpora: Corpora, accepted: Path, refused: Path) -> None:
    """The second pass: rows with a reason to `refused`, with it; the others to `accepted`."""
    schema = SCHEMAS[measured.name]
    told = schema.append(pa.field("reason", pa.string(), nullable=False))
    with _writer(accepted, measured.name, schema) as good, _writer(refused, measured.name, told) as bad:
        for row, reason in zip(rows_of(measured.name, corpora), measured.reasons(), strict=True):
            if reason:
                bad.write({**row, "reason": reason})
            else:
                good.write(row)


def _writer(folder: Path, table: str, schema: pa.Schema) -> AbstractContextManager[ShardWriter]:
    if table == "utterances":
        return ShardWriter(folder / table, schema)
    return table_writer(folder / f"{table}.parquet", schema)


def list_refused(corpora: Corpora, measured: Iterable[Statistics], path: Path) -> int:
    """One tab-separated line for each row that an importer or a check refused; how many there are.

    Columns: table, id, file (the corpus before its own path, with line or row where it has them), reason.
    """
    count = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(REFUSED_COLUMNS)
        for key, folder in corpora.items():
            for row in read_table(folder / "rejected.parquet"):
                writer.writerow((row["table"], row["id"], f"{key}/{row['file']}", row["reason"]))
                count += 1
        for rows in measured:
            if rows.refused:
                for (name, place), reason in zip(_places(rows.name, corpora), rows.reasons(), strict=True):
                    if reason:
                        writer.writerow((rows.name, name, place, reason))
                        count += 1
    return count


def _places(table: str, corpora: Corpora) -> Iterator[tuple[str, str]]:
    """Id and file of each row of a table, in the order of `rows_of`."""
    for key, folder in corpora.items():
        if table == "utterances":
            yield from ((row["id"], f"{key}/{row['file']}") for row in read_table(folder / "origins.parquet"))
        else:
            yield from ((row["id"], f"{key}/{table}.tsv") for row in read_table(folder / f"{table}.parquet"))


def pass_rejected(corpora: Corpora, refused: Path) -> dict[str, int]:
    """Copy what the importers rejected, the corpus before the file; how many rows of each table."""
    counts = dict.fromkeys(SCHEMAS, 0)
    with table_writer(refused / "rejected.parquet", REJECTED) as writer:
        for key, folder in corpora.items():
            for row in read_table(folder / "rejected.parquet"):
                writer.write({**row, "file": f"{key}/{row['file']}"})
                counts[row["table"]] += 1
    return counts
