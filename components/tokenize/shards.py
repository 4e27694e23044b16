"""One shard of accepted speech becomes one shard of units under the same name, whole or not at all.

This is the work that an engine spreads: it needs shard, tokenizer and `Recipe`, and nothing of the stage.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from cslm.shards import ShardWriter, read_shard
from cslm.tokenizer import Tokenizer
from cslm.tokenizer.corpus import tokenize

REPORT_EVERY = 500
PARTIAL = ".*-*"
"""Folders of shards that are being written."""

UNITS = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "language", "split", "speaker", "text")),
        ("speed", pa.float64()),
        ("duration_s", pa.float64()),
        ("units", pa.list_(pa.int32())),
        ("durations", pa.list_(pa.int32())),
    ]
)


class ShardFailed(Exception):
    """A shard cannot be encoded; the message names it, and says what to do."""


@dataclass(frozen=True)
class Recipe:
    """Which utterances of a shard are encoded, and how; the other names are those of params.yaml."""

    language: str
    speeds: tuple[float, ...]
    batch_seconds: float
    provider: str | None = None


class Progress(NamedTuple):
    """What has been done since the last time."""

    utterances: int
    seconds: float
    shards: int


def has_language(shard: Path, language: str) -> bool:
    """Whether a shard has an utterance in this language.

    Raises:
        ShardFailed: it cannot be read.
    """
    with _named(shard):
        return any(row["language"] == language for row in read_shard(shard, ["language"]))


def encode_shard(tokenizer: Tokenizer, recipe: Recipe, shard: Path, folder: Path) -> Iterator[Progress]:
    """Write the units of a shard to `folder`; tell each `REPORT_EVERY` utterances, and when it is there.

    Two who encode the same shard at once do no harm: both write the same, and one comes last.

    Raises:
        ShardFailed: the shard or an utterance of it cannot be read, or its units cannot be written.
    """
    utterances, seconds = 0, 0.0
    with _named(shard), tempfile.TemporaryDirectory(dir=folder, prefix=f".{shard.stem}-") as partial:
        with ShardWriter(Path(partial), UNITS, rows_per_shard=sys.maxsize) as writer:
            for row in tokenize(tokenizer, versions(shard, recipe), recipe.batch_seconds):
                writer.write({name: row[name] for name in UNITS.names})
                utterances, seconds = utterances + 1, seconds + row["duration_s"]
                if utterances == REPORT_EVERY:
                    yield Progress(utterances, seconds, 0)
                    utterances, seconds = 0, 0.0
        [whole] = Path(partial).glob("*.parquet")
        whole.rename(folder / shard.name)
    yield Progress(utterances, seconds, 1)


def versions(shard: Path, recipe: Recipe) -> Iterator[dict[str, Any]]:
    """Utterances of the recipe's language; those of training also at its speeds."""
    for row in read_shard(shard):
        if row["language"] == recipe.language:
            for speed in [1.0, *(recipe.speeds if row["split"] == "train" else [])]:
                yield {**row, "speed": speed, "duration_s": row["duration_s"] / speed}


def at_work(folder: Path) -> list[str]:
    """Shards of which somebody writes the units to `folder`, once for each who does or was killed over it."""
    return [path.name[1:].rpartition("-")[0] for path in folder.glob(PARTIAL)]


def clear(folder: Path) -> None:
    """Remove what was left half written, when nobody is at work."""
    for path in folder.glob(PARTIAL):
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _named(shard: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:  # pyarrow's and soundfile's are among them
        cause = str(error).rstrip(".")
        raise ShardFailed(
            f"{shard} cannot be encoded: {cause}. If it is damaged, have stage validate make it again "
            "(FORCE=validate), then run this again: shards that are finished are kept"
        ) from error
