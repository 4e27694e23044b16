"""Frames of a whole corpus in one flat file that is mapped into memory, so that memory stays flat."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cslm.pronunciation import labels
from cslm.tokenizer.ctc import needed_frames
from cslm.units import FRAMES_PER_SECOND


@dataclass(frozen=True)
class Utterance:
    """Where an utterance's frames lie in the file, and what is said in it."""

    first: int
    frames: int
    labels: tuple[str, ...]


class FrameFile:
    """Utterances to learn from: frames (t, *shape) of each, `frames_per_unit` in 40 ms, and its labels."""

    def __init__(
        self, path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...] = (), frames_per_unit: int = 1
    ) -> None:
        self.path = path
        self.utterances: list[Utterance] = []
        self._dtype, self._shape, self._frames_per_unit = np.dtype(dtype), shape, frames_per_unit

    def write(
        self, corpus: Iterable[tuple[npt.NDArray[np.generic], str, str]], known: Collection[str]
    ) -> Counter[str]:
        """Store (frames, text, language) rows; returns how many were left out, by reason.

        `too_fast`: more labels than units, or none; `unknown_sound`: a label that is not among those `known`.
        """
        first = 0
        skipped = Counter[str](too_fast=0, unknown_sound=0)
        known_names = frozenset(known)
        with self.path.open("wb") as file:
            for frames, text, language in corpus:
                names = tuple(label.name for label in labels(text, language))
                if not names or needed_frames(names) > len(frames) // self._frames_per_unit:
                    skipped["too_fast"] += 1
                    continue
                if not known_names.issuperset(names):
                    skipped["unknown_sound"] += 1
                    continue
                frames.astype(self._dtype).tofile(file)
                self.utterances.append(Utterance(first, len(frames), names))
                first += len(frames)
        return skipped

    def read(self, utterance: Utterance) -> npt.NDArray[np.generic]:
        """Frames (t, *shape) of one utterance."""
        offset = utterance.first * prod(self._shape) * self._dtype.itemsize
        shape = (utterance.frames, *self._shape)
        return np.array(np.memmap(self.path, self._dtype, "r", offset, shape))

    def batches(self, batch_seconds: float, seed: int) -> Iterator[list[Utterance]]:
        """Random batches of similar length, at most `batch_seconds` with their padding; epoch after epoch."""
        limit = batch_seconds * FRAMES_PER_SECOND * self._frames_per_unit
        for epoch in count():
            yield from _epoch(self.utterances, limit, random.Random(f"{seed}/epoch {epoch}"))


def _epoch(utterances: Sequence[Utterance], limit: float, rng: random.Random) -> list[list[Utterance]]:
    order = sorted(utterances, key=lambda utterance: utterance.frames * rng.uniform(0.9, 1.1))
    batches: list[list[Utterance]] = [[]]
    longest = 0
    for utterance in order:
        longest = max(longest, utterance.frames)
        if batches[-1] and longest * (len(batches[-1]) + 1) > limit:
            batches.append([])
            longest = utterance.frames
        batches[-1].append(utterance)
    rng.shuffle(batches)
    return batches
