"""The speech decoder: seconds of work for a second of sound, and how soon the first sound of a chunk is there.

Run:  python -m benchmarks.speaking      (a minute on 2 cores)

The decoder that ships speaks the units of dev recordings, in the voice of each, at its default settings. A
chunk is the first `WORDS` words of a recording, whose units are all there at once; the decoder gets them in the
pieces that an answer is made of.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks.inputs import prepared
from benchmarks.results import RESULTS, Measured, record
from cslm.audio import SAMPLE_RATE
from cslm.conversation import PIECE_UNITS
from cslm.decoder import SpeechDecoder
from cslm.shards import read_rows

WORDS = 7


@dataclass(frozen=True)
class Spoken:
    """Units of a recording, those of its first words, and its voice."""

    units: list[int]
    chunk: list[int]
    voice: str


def main(
    recordings: Annotated[int, typer.Option(help="how many")] = 40,
    results: Annotated[Path, typer.Option(help="where to write")] = RESULTS,
) -> None:
    """Measure with the models that ship."""
    decoder = SpeechDecoder.load(Path("models/decoder"))
    rows = read_rows(prepared() / "work/aligned", splits=["dev"])
    known = (row for row in rows if row["speaker"] in decoder.voices and len(row["words"]) > WORDS)
    spoken = [
        Spoken(row["units"], row["units"][: row["words"][WORDS]["first"]], row["speaker"])
        for row in islice(known, recordings)
    ]
    record(compare(decoder, spoken), results)


def compare(decoder: SpeechDecoder, spoken: Sequence[Spoken]) -> dict[str, Measured]:
    """Work against the time that the sound takes, and the first sound of a chunk against all of it."""
    decoder.speak(spoken[0].units, spoken[0].voice)  # the first time is slow: it is not measured
    works, lengths, firsts, wholes = [], [], [], []
    for each in spoken:
        started = time.perf_counter()
        samples = decoder.speak(each.units, each.voice)
        works.append(time.perf_counter() - started)
        lengths.append(len(samples) / SAMPLE_RATE)
        first, whole = _chunk(decoder, each)
        firsts.append(first)
        wholes.append(whole)
    n = len(spoken)
    return {
        "decoder.work": Measured(
            "Speech decoder, time of work",
            "time of the sound",
            sum(works) / n,
            sum(lengths) / n,
            "s an utterance",
            n,
            "ratio <= 0.3",
        ),
        "decoder.first_sound": Measured(
            f"Speech decoder, first sound of a chunk of {WORDS} words",
            "all of the chunk",
            1000 * median(firsts),
            1000 * median(wholes),
            "ms",
            n,
            "ours <= 300",
        ),
    }


def _chunk(decoder: SpeechDecoder, spoken: Spoken) -> tuple[float, float]:
    """Seconds from the last unit of a chunk to its first sound, and to its last."""
    stream, first = decoder.stream(spoken.voice), 0.0
    started = time.perf_counter()
    for begin in range(0, len(spoken.chunk), PIECE_UNITS):
        samples = stream.push(spoken.chunk[begin : begin + PIECE_UNITS])
        if len(samples) and not first:
            first = time.perf_counter() - started
    stream.finish()
    whole = time.perf_counter() - started
    return first or whole, whole


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
