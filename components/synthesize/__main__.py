"""Voice the lines of a TSV file: text in, Parquet shards of utterances out.

Run:  python -m components.synthesize --lines data/sample/lines.tsv --model models/kokoro-82m \\
          --out data/sample/speech

The columns `id`, `language`, `text`, `voice` and `split` are needed, `speed` is optional. A rerun
keeps the shards whose lines have not changed.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.progress import Progress

from components.synthesize.worker import speak, start_worker
from cslm.shards import UTTERANCE

LINES_PER_SHARD = 100
VOICED = {"id": "id", "language": "language", "text": "text", "speaker": "voice", "split": "split"}
"""Columns of a shard, and those of the lines that they come from."""
REQUIRED = ("id", "language", "text", "voice", "split")


def main(
    lines: Annotated[Path, typer.Option(help="TSV with id, language, text, voice, split [, speed]")],
    model: Annotated[Path, typer.Option(help="folder of the voice model (components.fetch kokoro-82m)")],
    out: Annotated[Path, typer.Option(help="folder for the shards")],
    hours: Annotated[float, typer.Option(help="stop once this much speech is there")] = float("inf"),
    workers: Annotated[int, typer.Option(help="processes, one thread each")] = os.cpu_count() or 1,
) -> None:
    """Voice the lines of a TSV file."""
    with lines.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    missing = [name for name in REQUIRED if not rows or name not in rows[0]]
    if missing:
        raise SystemExit(f"{lines}: no column {', '.join(missing)}; needed: {', '.join(REQUIRED)}")
    out.mkdir(parents=True, exist_ok=True)
    spoken_s = 0.0
    shards = [rows[i : i + LINES_PER_SHARD] for i in range(0, len(rows), LINES_PER_SHARD)]
    with (
        multiprocessing.get_context("spawn").Pool(workers, start_worker, (model,)) as pool,
        Progress() as progress,
    ):
        bar = progress.add_task("speaking", total=len(rows))
        for number, shard in enumerate(shards):
            path = out / f"shard-{number:05d}.parquet"
            if path.exists() and _speaks(path, shard):
                spoken_s += sum(pq.read_table(path, columns=["duration_s"])["duration_s"].to_pylist())
                progress.advance(bar, len(shard))
            elif spoken_s < hours * 3600:
                utterances = list(_track(pool.imap(speak, shard, chunksize=4), progress, bar))
                partial = path.with_suffix(".partial")
                pq.write_table(pa.Table.from_pylist(utterances, UTTERANCE), partial)
                partial.rename(path)
                spoken_s += sum(row["duration_s"] for row in utterances)
    print(f"{spoken_s / 3600:.2f} h of speech in {out}")


def _speaks(path: Path, lines: list[dict[str, str]]) -> bool:
    """Whether a shard holds just these lines; one of an older text is voiced again."""
    table = pq.read_table(path, columns=list(VOICED))
    held = list(zip(*(table[name].to_pylist() for name in VOICED), strict=True))
    wanted = [tuple(line[name] for name in VOICED.values()) for line in lines]
    if held != wanted:
        print(f"{path.name}: its lines have changed since it was voiced")
    return held == wanted


def _track(rows: Iterator[dict[str, Any]], progress: Progress, bar: Any) -> Iterator[dict[str, Any]]:
    for row in rows:
        progress.advance(bar)
        yield row


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
