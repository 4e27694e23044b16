"""The project's own form: `speech/*.parquet` (schema `cslm.shards.UTTERANCE`; more columns do no harm)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cslm.importers.found import BadCorpus, Defaults, Found, Refused
from cslm.importers.paths import BadPath, inside
from cslm.shards import ROWS_PER_GROUP, UTTERANCE


def read(root: Path, defaults: Defaults) -> Iterator[Found | Refused]:
    """Stream the rows of every shard; one that lies outside of `root` is refused, the others go on.

    Raises:
        BadCorpus: no shards, or one that is broken (nobody knows how many rows it had) or lacks a column.
    """
    paths = sorted((root / "speech").glob("*.parquet"))
    if not paths:
        raise BadCorpus(f"{root / 'speech'}: no *.parquet there")
    for path in paths:
        name = str(path.relative_to(root))
        try:
            with pq.ParquetFile(inside(root, name)) as file:
                yield from _read_shard(file, path, name, defaults)
        except BadPath as error:
            yield Refused("", name, str(error))
        except (pa.ArrowException, OSError) as error:
            raise BadCorpus(f"{path}: broken ({error}); fetch it anew, or remove it") from error


def _read_shard(file: pq.ParquetFile, path: Path, name: str, defaults: Defaults) -> Iterator[Found | Refused]:
    missing = set(UTTERANCE.names) - set(file.schema_arrow.names)
    if missing:
        raise BadCorpus(f"{path}: no column {', '.join(sorted(missing))}; see cslm/shards.py for the schema")
    number = 0
    for batch in file.iter_batches(ROWS_PER_GROUP, columns=UTTERANCE.names):
        for row in batch.to_pylist():
            number += 1
            yield _utterance(row, f"{name}#{number}", defaults)


def _utterance(row: dict[str, Any], place: str, defaults: Defaults) -> Found | Refused:
    empty = [key for key, value in row.items() if value is None]
    if empty:
        return Refused(str(row["id"] or ""), place, f"null in {', '.join(empty)}")
    if not math.isfinite(seconds := float(row["duration_s"])):
        return Refused(str(row["id"]), place, f"duration_s is {seconds}: a number of seconds is needed")
    return Found(
        id=str(row["id"]),
        file=place,
        audio=bytes(row["audio"]),
        text=str(row["text"]),
        language=defaults.language or str(row["language"]),
        speaker=str(row["speaker"]),
        split=str(row["split"]),
        duration_s=seconds,
        source=str(row["source"]),
    )
