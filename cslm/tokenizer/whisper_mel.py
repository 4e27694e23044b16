"""Whisper's log-mel features: 128 bins, 25 ms windows, 100 frames a second (openai/whisper, audio.py)."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
from transformers.audio_utils import mel_filter_bank

from cslm.audio import SAMPLE_RATE, Samples

MEL_BINS = 128
WINDOW = 400
HOP = 160
FLOOR = 1e-10
RANGE = 8.0
"""Decades of power below the loudest bin at which quieter ones are cut off."""
BLOCK = 3000
"""Frames at a time, so that an hour of sound needs no more memory than its features."""

Mel = npt.NDArray[np.float32]


def log_mel(samples: Samples) -> Mel:
    """16 kHz samples -> (128, samples // 160), as `whisper.log_mel_spectrogram(samples, n_mels=128)`."""
    count = len(samples) // HOP
    if not count:
        return np.zeros((MEL_BINS, 0), np.float32)
    padded = np.pad(samples, WINDOW // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][:count]
    power = np.concatenate(
        [
            np.abs(np.fft.rfft(frames[first : first + BLOCK] * _window())) ** 2 @ _filters()
            for first in range(0, count, BLOCK)
        ]
    )
    mel = np.log10(np.maximum(power, FLOOR)).T
    return np.asarray((np.maximum(mel, mel.max() - RANGE) + 4) / 4, np.float32)


@functools.cache
def _window() -> npt.NDArray[np.float64]:
    """Periodic Hann window (400,)."""
    return np.hanning(WINDOW + 1)[:-1]


@functools.cache
def _filters() -> npt.NDArray[np.float64]:
    """Triangular filters (201, 128) on Slaney's mel scale, each of unit area."""
    top = SAMPLE_RATE / 2
    filters: npt.NDArray[np.float64] = mel_filter_bank(
        WINDOW // 2 + 1, MEL_BINS, 0.0, top, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
    )
    return filters
