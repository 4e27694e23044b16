"""Align units with text and cut both into chunks.

Run:  python -m components.align

Reads `work/units` and `work/tokenizer`, writes `work/aligned`: each utterance with its words and its chunks, as
text and units[first:last], and which character of it each unit speaks. An utterance that cannot be aligned
is one word in one chunk, and is counted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import typer

from components.stage import Stage
from cslm.alignment import CannotAlign, align
from cslm.chunks import Chunk, cut_text, cut_units, spoken_characters, spoken_words
from cslm.pronunciation import labels
from cslm.shards import ShardWriter, read_rows
from cslm.tokenizer import Tokenizer, open_tokenizer
from cslm.units import expand_runs

UNITS = Path("work/units")
REPORT_EVERY = 500
BATCH = 32
Aligned = tuple[dict[str, list[Chunk]], Sequence[int | None]]
CUTS = ("words", "chunks")
CHUNK = pa.struct([("text", pa.string()), ("first", pa.int32()), ("last", pa.int32())])

log = logging.getLogger("cslm")


def main() -> None:
    """Align all utterances of all languages."""
    with Stage("align") as stage:
        tokenizer = open_tokenizer(Path("work/tokenizer"))
        size = stage.settings.align.words_per_chunk
        chunks = failed = 0
        used: set[int] = set()
        with stage.output("work/aligned") as folder, ShardWriter(folder, schema()) as writer:
            for batch in batches(utterances()):
                for row, aligned in zip(batch, align_batch(tokenizer, batch, size), strict=True):
                    if aligned is None:
                        failed += 1
                        whole = [Chunk(row["text"], 0, len(row["units"]))]
                        aligned = dict.fromkeys(CUTS, whole), [None] * len(row["units"])
                    cuts, spoken = aligned
                    pieces = {name: [vars(piece) for piece in cut] for name, cut in cuts.items()}
                    writer.write({**row, **pieces, "spoken": spoken})
                    chunks += len(cuts["chunks"])
                    used.update(row["units"])
                    if writer.rows % REPORT_EVERY == 0:
                        print(f"progress: {writer.rows} utterances", flush=True)
        stage.log_metrics(
            {
                "utterances": writer.rows,
                "not_aligned": failed,
                "chunks_per_utterance": chunks / writer.rows,
                "codes_used": len(used) / tokenizer.units,
            }
        )


def utterances() -> Iterator[dict[str, Any]]:
    """Rows of all languages."""
    for language in sorted(path for path in UNITS.iterdir() if path.is_dir()):
        yield from read_rows(language)


def batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Groups of at most `BATCH` rows."""
    while batch := list(islice(rows, BATCH)):
        yield batch


def align_batch(
    tokenizer: Tokenizer, batch: list[dict[str, Any]], words_per_chunk: int
) -> Iterator[Aligned | None]:
    """Words, chunks and spoken characters of each utterance; None, and a line in the log, without alignment."""
    posteriors = tokenizer.log_probs([expand_runs(row["units"], row["durations"]) for row in batch])
    for row, log_probs in zip(batch, posteriors, strict=True):
        names = [label for label in labels(row["text"], row["language"]) if label.name in tokenizer.label_ids]
        try:
            if not names:
                raise CannotAlign("the speech tokenizer knows none of its sounds")
            spans = align(log_probs, [tokenizer.label_ids[label.name] for label in names])
        except CannotAlign as error:
            log.warning("%s stays in one piece: %s", row["id"], error)
            yield None
        else:
            texts = {
                "words": spoken_words(row["text"], names),
                "chunks": cut_text(row["text"], words_per_chunk),
            }
            cuts = {name: cut_units(texts[name], names, spans, row["durations"]) for name in CUTS}
            yield cuts, spoken_characters(names, spans, row["durations"])


def schema() -> pa.Schema:
    """The units' schema and what alignment adds."""
    (first, *_) = sorted(UNITS.glob("*/*.parquet"))
    cuts = [(name, pa.list_(CHUNK)) for name in CUTS]
    return pa.schema([*pq.read_schema(first), *cuts, ("spoken", pa.list_(pa.int32()))])


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
