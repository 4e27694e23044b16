"""Speech to units as the component `tokenize` does it, against its encoder alone and against one at a time.

Run:  python -m benchmarks.speech_units      (2 minutes on 2 cores)

The component reads shards, decodes and resamples, makes mels, encodes, merges runs and writes shards. The
encoder alone gets the mels of the same batches ready made. One at a time is what a script does that takes one
file after the other: no batches.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.inputs import prepared
from benchmarks.results import RESULTS, Measured, by_turns, record
from components.tokenize.__main__ import UNITS
from cslm.audio import decode
from cslm.shards import UTTERANCE, ShardWriter, read_rows
from cslm.tokenizer import SpeechTokenizer
from cslm.tokenizer.batches import by_length
from cslm.tokenizer.corpus import tokenize
from cslm.tokenizer.features import log_mel
from cslm.tokenizer.speech_tokenizer import collate
from cslm.units import merge_runs

BATCH_SECONDS = 120.0
"""As in params.yaml."""


def main(
    utterances: Annotated[int, typer.Option(help="how many")] = 512,
    turns: Annotated[int, typer.Option(help="measurements of each kind")] = 5,
    results: Annotated[Path, typer.Option(help="where to write")] = RESULTS,
) -> None:
    """Measure on accepted speech of the sample corpus."""
    inputs = prepared()
    tokenizer = SpeechTokenizer.load(inputs / "work/tokenizer")
    rows = list(islice(read_rows(inputs / "work/accepted/utterances"), utterances))
    record(compare(tokenizer, rows, turns), results)


def compare(tokenizer: SpeechTokenizer, rows: Sequence[dict[str, Any]], turns: int) -> dict[str, Measured]:
    """Seconds of speech a second, three ways."""
    seconds = sum(float(row["duration_s"]) for row in rows)
    batches = list(by_length([row["duration_s"] for row in rows], BATCH_SECONDS))
    mels = [collate([log_mel(decode(rows[i]["audio"])) for i in batch]) for batch in batches]
    with tempfile.TemporaryDirectory() as scratch:
        shards = Path(scratch) / "speech"
        with ShardWriter(shards, UTTERANCE) as writer:
            for row in rows:
                writer.write(row)

        def component(turn: int) -> float:
            started = time.perf_counter()
            with ShardWriter(Path(scratch) / f"units-{turn}", UNITS) as writer:
                for row in tokenize(tokenizer, _read(shards), BATCH_SECONDS):
                    writer.write({name: row[name] for name in UNITS.names})
            return seconds / (time.perf_counter() - started)

        def encoder(turn: int) -> float:
            started = time.perf_counter()
            with torch.inference_mode():
                for mel, lengths in mels:
                    tokenizer.network.quantizer.to_units(tokenizer.network.codes(mel, lengths))
            return seconds / (time.perf_counter() - started)

        def one_at_a_time(turn: int) -> float:
            started = time.perf_counter()
            with ShardWriter(Path(scratch) / f"single-{turn}", UNITS) as writer:
                for row in _read(shards):
                    [frames] = tokenizer.encode([decode(row["audio"])])
                    units, durations = merge_runs(frames)
                    row |= {"units": units, "durations": durations}
                    writer.write({name: row[name] for name in UNITS.names})
            return seconds / (time.perf_counter() - started)

        component(-1)  # the first pass through a network is slow: it is not measured
        fast, bare = by_turns(component, encoder, turns)
        again, single = by_turns(lambda turn: component(turns + turn), one_at_a_time, turns)
    unit = "s of speech/s"
    return {
        "tokenize.encoder": Measured(
            "Speech to units", "the encoder alone on ready mels", fast, bare, unit, turns, "ratio >= 0.85"
        ),
        "tokenize.single": Measured(
            "Speech to units", "one utterance at a time", again, single, unit, turns, "ratio >= 4.0"
        ),
    }


def _read(shards: Path) -> Any:
    return ({**row, "speed": 1.0} for row in read_rows(shards))


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
