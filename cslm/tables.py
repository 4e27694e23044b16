"""The tables beside the speech: dialogues, translations, and what was refused.

A corpus has each of them as one Parquet file; all their columns are strings. `*_speech` of a dialogue
names an utterance, or is empty: then that side is text only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cslm.shards import ROWS_PER_GROUP, ShardWriter

SPLITS = ("train", "dev", "test", "heldout_voice")


def _strings(*names: str) -> pa.Schema:
    return pa.schema([pa.field(name, pa.string(), nullable=False) for name in names])


DIALOGUE = _strings(
    "id",
    "split",
    "question_language",
    "question",
    "question_speech",
    "answer_language",
    "answer",
    "answer_speech",
)
TRANSLATION = _strings("id", "split", "source_language", "source", "target_language", "target")
ORIGIN = _strings("id", "file")
"""Where each utterance of a corpus was found, in the order of the utterances; `file` as in `REJECTED`."""
REJECTED = _strings("table", "id", "file", "reason")
"""What an importer could not take in; `file` is relative to the corpus."""


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[ShardWriter]:
    """A writer of rows whose one file is `path`; it appears there when it is whole."""
    with ShardWriter(path.parent, schema, rows_per_shard=sys.maxsize, prefix=path.stem) as writer:
        yield writer
    (path.parent / f"{path.stem}-00000.parquet").rename(path)


def read_table(path: Path) -> Iterator[dict[str, Any]]:
    """Stream the rows of one Parquet file."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS_PER_GROUP):
            yield from batch.to_pylist()
