"""Ingest and validation at growing sizes: the time of a row must not grow with their number, nor the memory.

Run:  python -m benchmarks.corpus                               (1,000 to 100,000 rows; 4 minutes on 2 cores)
      python -m benchmarks.corpus --sizes 1000,100000,1000000   (the long one; about 10 GB of disk)

Both components run as processes of their own on a made-up corpus of half-second tones, all different, which
cost next to nothing to decode: so it is the work on rows that is measured. Rows a second are those between two
sizes, so that what a process needs to start is left out; memory is the most that a process had.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml

from benchmarks.inputs import component, home
from benchmarks.results import RESULTS, ROOT, Measured, record
from cslm.audio import SAMPLE_RATE, encode_flac
from cslm.shards import UTTERANCE, ShardWriter

LEVELS = 10_000
COMMANDS = {"ingest": "ingest --corpus bench", "validate": "validate"}


@dataclass(frozen=True)
class Cost:
    """Of one run of a component."""

    seconds: float
    memory_mb: float


def main(
    sizes: Annotated[str, typer.Option(help="three numbers of rows, rising")] = "1000,10000,100000",
    results: Annotated[Path, typer.Option(help="where to write")] = RESULTS,
) -> None:
    """Measure both components at three sizes."""
    rows = [int(size) for size in sizes.split(",")]
    if len(rows) != 3 or rows != sorted(set(rows)):
        raise typer.BadParameter(f"{sizes!r}: three numbers of rows, rising, such as 1000,10000,100000")
    record(compare(rows), results)


def compare(sizes: Sequence[int]) -> dict[str, Measured]:
    """Rows a second and memory of both components, at the largest size against a smaller one."""
    costs: dict[str, list[Cost]] = {name: [] for name in COMMANDS}
    home().mkdir(parents=True, exist_ok=True)
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=home(), prefix="corpus-") as scratch:
            folder = Path(scratch)
            make_corpus(folder, size)
            for name, command in COMMANDS.items():
                started = time.perf_counter()
                memory = component(command, folder)
                costs[name].append(Cost(time.perf_counter() - started, memory))
                print(f"{name}, {size} rows: {costs[name][-1]}", flush=True)
    found: dict[str, Measured] = {}
    for name, (small, middle, large) in costs.items():
        late = (sizes[2] - sizes[1]) / (large.seconds - middle.seconds)
        early = (sizes[1] - sizes[0]) / (middle.seconds - small.seconds)
        what = f"{name.capitalize()} of {sizes[2]:,} rows"
        found[f"{name}.{sizes[2]}.rows"] = Measured(
            f"{what}: speed",
            f"{sizes[1]:,} rows",
            *(late, early, "rows/s", 1, "ratio >= 0.8"),
        )
        found[f"{name}.{sizes[2]}.memory"] = Measured(
            f"{what}: most memory",
            f"{sizes[0]:,} rows",
            *(large.memory_mb, small.memory_mb, "MB", 1, "ratio <= 1.2"),
        )
    return found


def make_corpus(folder: Path, count: int) -> None:
    """A corpus of shards, and the params.yaml that names it."""
    settings: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
    settings |= {"languages": ["en"], "corpora": {"bench": {"format": "shards", "path": "corpus"}}}
    (folder / "params.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    with ShardWriter(folder / "corpus" / "speech", UTTERANCE) as writer:
        for row in rows(count):
            writer.write(row)


def rows(count: int) -> Iterator[dict[str, Any]]:
    """Rows of the made-up corpus; no two sounds are equal."""
    for number in range(count):
        length = SAMPLE_RATE // 2 + number // LEVELS  # every sound is another one
        sound = np.full(length, 0.1 + 0.8 * (number % LEVELS) / LEVELS, np.float32)
        yield {
            "id": f"row-{number:07d}",
            "audio": encode_flac(sound),
            "duration_s": length / SAMPLE_RATE,
            "sample_rate": SAMPLE_RATE,
            "text": f"tone {number % 97}",
            "language": "en",
            "speaker": f"speaker-{number % 50}",
            "source": "bench",
            "split": "train",
        }


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
