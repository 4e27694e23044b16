"""The speech that the decoder learns from: samples, pitch and unit frames of each utterance.

All three are flat files, mapped into memory where they are read, so memory stays flat whatever the size of the
corpus.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cslm.audio import SAMPLE_RATE, Samples
from cslm.decoder.flow import mel_frames
from cslm.decoder.mel import BINS, HOP, log_mel
from cslm.decoder.pitch import FEATURES, track
from cslm.units import FRAMES_PER_SECOND

FRAME_SAMPLES = SAMPLE_RATE // FRAMES_PER_SECOND
FULL_SCALE = 32767


@dataclass(frozen=True)
class Spoken:
    """Where an utterance lies: units and samples from frame `first`, its pitch from mel frame `first_mel`."""

    first: int
    frames: int
    voice: int
    first_mel: int


class SpeechFile:
    """Utterances of known units on disk."""

    def __init__(self, folder: Path) -> None:
        self._samples, self._units = folder / "samples.i16", folder / "units.i16"
        self._pitch = folder / "pitch.f32"
        self.utterances: list[Spoken] = []

    def write(self, rows: Iterable[tuple[Samples, npt.NDArray[np.int64], int]]) -> None:
        """Store (samples, unit frames (T,), voice) rows; samples are filled up or cut to whole frames."""
        first = pitch = 0
        with (
            self._samples.open("wb") as samples_file,
            self._units.open("wb") as units_file,
            self._pitch.open("wb") as pitch_file,
        ):
            for samples, frames, voice in rows:
                whole = np.zeros(len(frames) * FRAME_SAMPLES, np.float32)
                known = samples[: len(whole)]
                whole[: len(known)] = known
                (whole.clip(-1, 1) * FULL_SCALE).round().astype(np.int16).tofile(samples_file)
                frames.astype(np.int16).tofile(units_file)
                heard = track(np.pad(whole, (0, HOP)))[: mel_frames(len(frames))]
                heard.numpy().tofile(pitch_file)
                self.utterances.append(Spoken(first, len(frames), voice, pitch))
                first, pitch = first + len(frames), pitch + len(heard)

    def samples(self, spoken: Spoken, begin: int, end: int) -> Tensor:
        """Samples of unit frames `begin` to `end` of an utterance."""
        count = (end - begin) * FRAME_SAMPLES
        offset = (spoken.first + begin) * FRAME_SAMPLES * 2
        read = np.memmap(self._samples, np.int16, "r", offset, (count,))
        return torch.from_numpy(read.astype(np.float32) / FULL_SCALE)

    def pitch(self, spoken: Spoken, begin: int, end: int) -> Tensor:
        """Pitch (M, 2) of the mel frames that begin in unit frames `begin`, which is even, to `end`."""
        first, last = mel_frames(begin), mel_frames(end)
        offset = (spoken.first_mel + first) * 2 * 4
        return torch.from_numpy(np.memmap(self._pitch, np.float32, "r", offset, (last - first, 2)).copy())

    def frames(self, spoken: Spoken, begin: int, end: int) -> Tensor:
        """Unit frames `begin` to `end` of an utterance."""
        read = np.memmap(self._units, np.int16, "r", (spoken.first + begin) * 2, (end - begin,))
        return torch.from_numpy(read.astype(np.int64))


@dataclass(frozen=True)
class Batch:
    """Unit frames (B, T), how many of each row are real (B,), features (B, M, 82), the voices (B,)."""

    frames: Tensor
    lengths: Tensor
    features: Tensor
    voices: Tensor


def acoustic_batch(
    corpus: SpeechFile, total: int, longest: int, rng: random.Random, device: str = "cpu"
) -> Batch:
    """Utterances of similar length, about `total` unit frames; of those over `longest`, a random part."""
    center = rng.choice(corpus.utterances)
    length = min(center.frames, longest)
    alike = rng.sample(corpus.utterances, min(len(corpus.utterances), 8 * (total // length + 1)))
    alike.sort(key=lambda spoken: abs(min(spoken.frames, longest) - length))
    chosen = alike[: max(1, total // length)]
    size = max(min(spoken.frames, longest) for spoken in chosen)
    frames = torch.zeros(len(chosen), size, dtype=torch.long)
    lengths, stretches = [], []
    for row, spoken in enumerate(chosen):
        begin, end = _stretch(spoken, longest, rng)
        frames[row, : end - begin] = corpus.frames(spoken, begin, end)
        lengths.append(end - begin)
        stretches.append((spoken, begin, end))
    features, _ = _features(corpus, stretches, size, device)
    voices = torch.tensor([spoken.voice for spoken in chosen], device=device)
    return Batch(frames.to(device), torch.tensor(lengths, device=device), features, voices)


def waveform_batch(
    corpus: SpeechFile, segments: int, frames: int, rng: random.Random, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Features and samples (segments, 640 frames) of random stretches; silence follows shorter utterances."""
    chosen = rng.choices(corpus.utterances, k=segments)
    return _features(corpus, [(spoken, *_stretch(spoken, frames, rng)) for spoken in chosen], frames, device)


def _stretch(spoken: Spoken, longest: int, rng: random.Random) -> tuple[int, int]:
    """Begin and end of a random stretch; it begins with a mel frame (five to two unit frames)."""
    begin = 2 * rng.randint(0, max(0, spoken.frames - longest) // 2)
    return begin, min(spoken.frames, begin + longest)


def _features(
    corpus: SpeechFile, stretches: Sequence[tuple[Spoken, int, int]], size: int, device: str
) -> tuple[Tensor, Tensor]:
    """Features (B, M, 82) and samples (B, 640 size) of stretches of up to `size` unit frames."""
    samples = torch.zeros(len(stretches), size * FRAME_SAMPLES)
    features = torch.zeros(len(stretches), mel_frames(size), FEATURES)
    for row, (spoken, begin, end) in enumerate(stretches):
        samples[row, : (end - begin) * FRAME_SAMPLES] = corpus.samples(spoken, begin, end)
        pitch = corpus.pitch(spoken, begin, end)
        features[row, : len(pitch), BINS:] = pitch
        features[row, len(pitch) :, BINS] = pitch[-1, 0]
    samples, features = samples.to(device), features.to(device)
    features[..., :BINS] = log_mel(torch.nn.functional.pad(samples, (0, HOP)))[:, : features.shape[1]]
    return features, samples
