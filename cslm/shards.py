"""Parquet shards of utterances: the one form in which speech travels between stages.

One row is one utterance; `audio` holds a whole encoded file (Ogg Opus or FLAC), mono. Readers stream:
memory holds one row group, whatever the size of the corpus.
"""

from __future__ import annotations

import random
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_GROUP = 128
UNKNOWN_SPEAKER = "unknown"
"""Speaker of an utterance whose corpus does not tell: many voices under one name."""

UTTERANCE = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("audio", pa.binary(), nullable=False),
        pa.field("duration_s", pa.float64(), nullable=False),
        pa.field("sample_rate", pa.int32(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),
        pa.field("speaker", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
    ]
)


class ShardWriter:
    """Writes rows to `folder/PREFIX-00000.parquet`, ... of `rows_per_shard` rows each.

    A shard appears under its name only when it is whole. Use as a context manager.
    """

    def __init__(
        self, folder: Path, schema: pa.Schema, rows_per_shard: int = 4096, prefix: str = "shard"
    ) -> None:
        self.folder, self.schema, self.rows_per_shard, self.prefix = folder, schema, rows_per_shard, prefix
        self.rows = 0
        self._buffer: list[Mapping[str, Any]] = []
        self._writer: pq.ParquetWriter | None = None
        self._rows_in_shard = 0
        self._shards = 0
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, row: Mapping[str, Any]) -> None:
        """Add one row; its keys are the schema's fields."""
        self._buffer.append(row)
        self.rows += 1
        if len(self._buffer) == ROWS_PER_GROUP:
            self._flush()
        if self._rows_in_shard + len(self._buffer) >= self.rows_per_shard:
            self._finish_shard()

    def _path(self) -> Path:
        return self.folder / f"{self.prefix}-{self._shards:05d}.parquet"

    def _flush(self) -> None:
        if not self._buffer:
            return
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path().with_suffix(".partial"), self.schema)
        self._writer.write_table(pa.Table.from_pylist(list(self._buffer), self.schema))
        self._rows_in_shard += len(self._buffer)
        self._buffer.clear()

    def _finish_shard(self) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._path().with_suffix(".partial").rename(self._path())
            self._shards += 1
            self._rows_in_shard = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._finish_shard()
            if not self._shards:  # an empty result is still a readable one
                self._writer = pq.ParquetWriter(self._path().with_suffix(".partial"), self.schema)
                self._finish_shard()
        elif self._writer is not None:
            self._writer.close()
            self._path().with_suffix(".partial").unlink(missing_ok=True)


def read_rows(
    folder: Path,
    columns: list[str] | None = None,
    splits: Iterable[str] | None = None,
    ids: Iterable[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Stream the rows of all shards of `folder`, in order of file name.

    Of rows that are not wanted no sound is read, unless a wanted one is in the same row group.

    Args:
        columns: only these fields, and those that are asked for below (all by default).
        splits: only rows whose `split` is one of these (all by default).
        ids: only rows whose `id` is one of these (all by default).

    Raises:
        FileNotFoundError: the folder has no `*.parquet`.
    """
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no shards (*.parquet) there; run the stage that writes them")
    wanted = {
        name: frozenset(values) for name, values in (("split", splits), ("id", ids)) if values is not None
    }
    if not all(wanted.values()):
        return
    read = None if columns is None else [*dict.fromkeys([*columns, *wanted])]
    for path in paths:
        yield from read_shard(path, read, wanted)


def read_shard(
    path: Path, columns: list[str] | None = None, wanted: Mapping[str, Container[str]] = MappingProxyType({})
) -> Iterator[dict[str, Any]]:
    """Stream the rows of one shard; only the fields `columns`, or all.

    Args:
        wanted: field -> values that rows must have one of; `columns` names these fields too.
    """

    def is_wanted(row: Mapping[str, Any]) -> bool:
        return all(row[name] in values for name, values in wanted.items())

    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            if wanted and not any(map(is_wanted, file.read_row_group(group, [*wanted]).to_pylist())):
                continue
            for batch in file.iter_batches(ROWS_PER_GROUP, row_groups=[group], columns=columns):
                yield from filter(is_wanted, batch.to_pylist())


def random_part(
    rows: Iterable[dict[str, Any]], share: float, seed: int, kind: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Each row with the probability `share`, and the first of each kind in any case.

    Args:
        kind: the fields in which rows of one kind are equal.
    """
    rng = random.Random(seed)
    known: set[tuple[Any, ...]] = set()
    for row in rows:
        of_row = tuple(row[name] for name in kind)
        if rng.random() < share or of_row not in known:
            known.add(of_row)
            yield row
