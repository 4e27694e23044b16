"""Speech to units as the component `tokenize` does it, against its encoder alone and against one at a time.

Run:  python -m benchmarks.speech_units      (5 minutes on 2 cores)

The component reads shards, decodes and resamples, makes mels, encodes, merges runs and writes shards. The
encoder alone gets the mels of the same batches ready made; once more with an encoder as costly as CosyVoice's,
of random weights. One at a time is what a script does that takes one file after the other: no batches.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.inputs import prepared
from benchmarks.results import RESULTS, Measured, by_turns, record
from components.tokenize.shards import UNITS
from cslm.audio import decode
from cslm.shards import UTTERANCE, ShardWriter, read_rows
from cslm.tokenizer import SpeechTokenizer
from cslm.tokenizer.batches import by_length
from cslm.tokenizer.corpus import tokenize
from cslm.tokenizer.features import log_mel
from cslm.tokenizer.speech_tokenizer import TokenizerConfig, collate
from cslm.units import merge_runs

BATCH_SECONDS = 120.0
"""As in params.yaml."""
LARGE = TokenizerConfig(hidden=1280, layers=6, levels=[8, 8, 8, 8], labels=["a"])
"""An encoder with about the work of CosyVoice's for a second of speech, and as many units."""
LARGE_SHARE = 8
"""The large encoder gets one of so many utterances."""
UNIT = "s of speech/s"


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
    large = SpeechTokenizer(LARGE)
    large.network.eval()
    record(compare_large(large, rows[::LARGE_SHARE], turns), results)


def compare(tokenizer: SpeechTokenizer, rows: Sequence[dict[str, Any]], turns: int) -> dict[str, Measured]:
    """The component against the encoder alone, and against one utterance at a time."""
    with _work(tokenizer, rows) as work:
        fast, bare = by_turns(work.component, work.encoder, turns)
        again, single = by_turns(work.component, work.one_at_a_time, turns)
    ours, encoder = "Speech to units", "the encoder alone on ready mels"
    return {
        "tokenize.encoder": Measured(ours, encoder, fast, bare, UNIT, turns, "ratio >= 0.85"),
        "tokenize.single": Measured(
            ours, "one utterance at a time", again, single, UNIT, turns, "ratio >= 4.0"
        ),
    }


def compare_large(
    tokenizer: SpeechTokenizer, rows: Sequence[dict[str, Any]], turns: int
) -> dict[str, Measured]:
    """The component against the encoder alone, where that is a large one."""
    with _work(tokenizer, rows) as work:
        fast, bare = by_turns(work.component, work.encoder, turns)
    ours = "Speech to units with an encoder as costly as CosyVoice's"
    encoder = "the encoder alone on ready mels"
    return {"tokenize.large_encoder": Measured(ours, encoder, fast, bare, UNIT, turns, "ratio >= 0.85")}


class Work:
    """Utterances to make units of; each way gives seconds of speech a second."""

    def __init__(self, tokenizer: SpeechTokenizer, rows: Sequence[dict[str, Any]], scratch: Path) -> None:
        self.tokenizer, self.shards, self.units = tokenizer, scratch / "speech", scratch / "units"
        self.seconds = sum(float(row["duration_s"]) for row in rows)
        batches = by_length([row["duration_s"] for row in rows], BATCH_SECONDS)
        self.mels = [collate([log_mel(decode(rows[i]["audio"])) for i in batch]) for batch in batches]
        with ShardWriter(self.shards, UTTERANCE) as writer:
            for row in rows:
                writer.write(row)

    def component(self, _: int) -> float:
        """As the component does it."""
        started = time.perf_counter()
        with ShardWriter(self._anew(), UNITS) as writer:
            for row in tokenize(self.tokenizer, self._rows(), BATCH_SECONDS):
                writer.write({name: row[name] for name in UNITS.names})
        return self.seconds / (time.perf_counter() - started)

    def encoder(self, _: int) -> float:
        """The network up to its units, no more."""
        started = time.perf_counter()
        network = self.tokenizer.network
        with torch.inference_mode():
            for mel, lengths in self.mels:
                network.quantizer.to_units(network.codes(mel, lengths))
        return self.seconds / (time.perf_counter() - started)

    def one_at_a_time(self, _: int) -> float:
        """As a script does it."""
        started = time.perf_counter()
        with ShardWriter(self._anew(), UNITS) as writer:
            for row in self._rows():
                [frames] = self.tokenizer.encode([decode(row["audio"])])
                units, durations = merge_runs(frames)
                row |= {"units": units, "durations": durations}
                writer.write({name: row[name] for name in UNITS.names})
        return self.seconds / (time.perf_counter() - started)

    def _rows(self) -> Iterator[dict[str, Any]]:
        return ({**row, "speed": 1.0} for row in read_rows(self.shards))

    def _anew(self) -> Path:
        shutil.rmtree(self.units, ignore_errors=True)
        return self.units


@contextmanager
def _work(tokenizer: SpeechTokenizer, rows: Sequence[dict[str, Any]]) -> Iterator[Work]:
    with tempfile.TemporaryDirectory() as scratch:
        work = Work(tokenizer, rows, Path(scratch))
        work.component(0)  # the first pass through a network is slow: it is not measured
        yield work


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
