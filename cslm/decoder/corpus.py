"""The speech that the decoder learns from: samples and unit frames of every utterance, in two flat files.

Both are mapped into memory where they are read, so memory stays flat whatever the size of the corpus.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cslm.audio import SAMPLE_RATE, Samples
from cslm.decoder.flow import mel_frames
from cslm.decoder.mel import HOP, log_mel
from cslm.units import FRAMES_PER_SECOND

FRAME_SAMPLES = SAMPLE_RATE // FRAMES_PER_SECOND
FULL_SCALE = 32767


@dataclass(frozen=True)
class Spoken:
    """Where an utterance lies: `frames` unit frames from `first` on, and 640 samples for each."""

    first: int
    frames: int
    voice: int


class SpeechFile:
    """Utterances of known units on disk."""

    def __init__(self, folder: Path) -> None:
        self._samples, self._units = folder / "samples.i16", folder / "units.i16"
        self.utterances: list[Spoken] = []

    def write(self, rows: Iterable[tuple[Samples, npt.NDArray[np.int64], int]]) -> None:
        """Store (samples, unit frames (T,), voice) rows; samples are filled up or cut to whole frames."""
        first = 0
        with self._samples.open("wb") as samples_file, self._units.open("wb") as units_file:
            for samples, frames, voice in rows:
                whole = np.zeros(len(frames) * FRAME_SAMPLES, np.float32)
                known = samples[: len(whole)]
                whole[: len(known)] = known
                (whole.clip(-1, 1) * FULL_SCALE).round().astype(np.int16).tofile(samples_file)
                frames.astype(np.int16).tofile(units_file)
                self.utterances.append(Spoken(first, len(frames), voice))
                first += len(frames)

    def samples(self, spoken: Spoken, begin: int, end: int) -> Tensor:
        """Samples of unit frames `begin` to `end` of an utterance."""
        count = (end - begin) * FRAME_SAMPLES
        offset = (spoken.first + begin) * FRAME_SAMPLES * 2
        read = np.memmap(self._samples, np.int16, "r", offset, (count,))
        return torch.from_numpy(read.astype(np.float32) / FULL_SCALE)

    def frames(self, spoken: Spoken, begin: int, end: int) -> Tensor:
        """Unit frames `begin` to `end` of an utterance."""
        read = np.memmap(self._units, np.int16, "r", (spoken.first + begin) * 2, (end - begin,))
        return torch.from_numpy(read.astype(np.int64))


@dataclass(frozen=True)
class Batch:
    """Unit frames (B, T), how many of each row are real (B,), their log mel (B, M, 80), the voices (B,)."""

    frames: Tensor
    lengths: Tensor
    mel: Tensor
    voices: Tensor


def acoustic_batch(corpus: SpeechFile, total: int, longest: int, rng: random.Random) -> Batch:
    """Utterances of similar length, about `total` unit frames; of those over `longest`, a random part."""
    center = rng.choice(corpus.utterances)
    length = min(center.frames, longest)
    alike = rng.sample(corpus.utterances, min(len(corpus.utterances), 8 * (total // length + 1)))
    alike.sort(key=lambda spoken: abs(min(spoken.frames, longest) - length))
    chosen = alike[: max(1, total // length)]
    size = max(min(spoken.frames, longest) for spoken in chosen)
    frames = torch.zeros(len(chosen), size, dtype=torch.long)
    samples = torch.zeros(len(chosen), size * FRAME_SAMPLES)
    lengths = []
    for row, spoken in enumerate(chosen):
        begin = rng.randint(0, max(0, spoken.frames - longest))
        end = min(spoken.frames, begin + longest)
        frames[row, : end - begin] = corpus.frames(spoken, begin, end)
        samples[row, : (end - begin) * FRAME_SAMPLES] = corpus.samples(spoken, begin, end)
        lengths.append(end - begin)
    mel = log_mel(torch.nn.functional.pad(samples, (0, HOP)))[:, : mel_frames(size)]
    return Batch(frames, torch.tensor(lengths), mel, torch.tensor([spoken.voice for spoken in chosen]))


def waveform_batch(corpus: SpeechFile, segments: int, frames: int, rng: random.Random) -> Tensor:
    """Random stretches (segments, 640 frames) of samples; shorter utterances are followed by silence."""
    samples = torch.zeros(segments, frames * FRAME_SAMPLES)
    for row, spoken in enumerate(rng.choices(corpus.utterances, k=segments)):
        begin = rng.randint(0, max(0, spoken.frames - frames))
        end = min(spoken.frames, begin + frames)
        samples[row, : (end - begin) * FRAME_SAMPLES] = corpus.samples(spoken, begin, end)
    return samples
