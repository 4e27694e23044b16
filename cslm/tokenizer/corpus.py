"""Units of a whole corpus: decode, encode in batches of similar length, merge runs. Memory stays flat.

A batch is decoded on all cores, as libsndfile and soxr work outside of Python's lock, and then encoded on all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import jiwer

from cslm.audio import BadAudio, Samples, change_speed, decode
from cslm.pronunciation import labels
from cslm.tokenizer import Tokenizer
from cslm.tokenizer.batches import by_length
from cslm.units import expand_runs, merge_runs

WINDOW = 1024


def tokenize(
    tokenizer: Tokenizer, utterances: Iterable[dict[str, Any]], batch_seconds: float
) -> Iterator[dict[str, Any]]:
    """Utterance rows -> the same rows, in order, without audio and with `units` and `durations`.

    A row may say at which `speed` to play its audio; its `duration_s` is that of the result. Batches are formed
    inside windows of `WINDOW` rows, each with at most `batch_seconds` of padded speech.

    Raises:
        BadAudio: an utterance cannot be decoded; the message has its id.
    """
    stream = iter(utterances)
    with ThreadPoolExecutor() as pool:
        while window := list(islice(stream, WINDOW)):
            units: dict[int, tuple[list[int], list[int]]] = {}
            for batch in by_length([float(row["duration_s"]) for row in window], batch_seconds):
                frames = tokenizer.encode(list(pool.map(_samples, [window[i] for i in batch])))
                units |= {i: merge_runs(row) for i, row in zip(batch, frames, strict=True)}
            for i, row in enumerate(window):
                merged, durations = units[i]
                kept = {key: value for key, value in row.items() if key != "audio"}
                yield {**kept, "units": merged, "durations": durations}


def _samples(row: Mapping[str, Any]) -> Samples:
    try:
        return change_speed(decode(row["audio"]), row.get("speed", 1.0))
    except BadAudio as error:
        raise BadAudio(f"utterance {row['id']}: {error}") from error


class LabelErrors:
    """Error rate of the CTC head's best path, by language."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._errors: Counter[str] = Counter()
        self._labels: Counter[str] = Counter()

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Count a batch of utterances that `tokenize` gave."""
        posteriors = self._tokenizer.log_probs([expand_runs(r["units"], r["durations"]) for r in rows])
        for row, log_probs in zip(rows, posteriors, strict=True):
            said = [label.name for label in labels(row["text"], row["language"])]
            self._errors[row["language"]] += edit_distance(said, self._tokenizer.transcribe(log_probs))
            self._labels[row["language"]] += len(said)

    def result(self) -> dict[str, dict[str, float]]:
        """`{"label_error": {language: rate}, "labels": {language: n}}`."""
        rates = {language: self._errors[language] / n for language, n in self._labels.items() if n}
        return {"label_error": rates, "labels": dict(self._labels)}


def edit_distance(reference: list[str], hypothesis: list[str]) -> int:
    """Levenshtein distance of two sequences, by jiwer."""
    if not reference:
        return len(hypothesis)
    out = jiwer.process_words(" ".join(reference), " ".join(hypothesis))
    return int(out.substitutions + out.deletions + out.insertions)
