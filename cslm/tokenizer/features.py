"""Log-mel features: 80 bins, 25 ms windows, 100 frames a second."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from cslm.audio import SAMPLE_RATE, Samples

MEL_BINS = 80
WINDOW = 400
HOP = 160
FLOOR = 1e-6


def log_mel(samples: Samples) -> Tensor:
    """Log-mel spectrogram (ceil(samples / 160), 80), each bin of zero mean over the utterance.

    The mean is removed so that loudness and the color of the microphone do not matter.
    """
    audio = torch.from_numpy(np.ascontiguousarray(samples))
    audio = torch.nn.functional.pad(audio, (0, -len(audio) % HOP))
    spectrum = torch.stft(
        audio,
        n_fft=WINDOW,
        hop_length=HOP,
        window=_window(),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    power = spectrum[:, : len(audio) // HOP].abs().square()  # (201, T)
    mel = (_filters() @ power).clamp_min(FLOOR).log().T  # (T, 80)
    return mel - mel.mean(0)


@functools.cache
def _window() -> Tensor:
    return torch.hann_window(WINDOW)


@functools.cache
def _filters() -> Tensor:
    """Triangular filters (80, 201), equally wide on the HTK mel scale from 0 to 8 kHz."""

    def hertz(mel: Tensor) -> Tensor:
        return 700 * (10 ** (mel / 2595) - 1)

    top = 2595 * torch.log10(torch.tensor(1 + SAMPLE_RATE / 2 / 700))
    corners = hertz(torch.linspace(0, float(top), MEL_BINS + 2))
    bins = torch.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1)
    rising = (bins - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - bins) / (corners[2:] - corners[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp_min(0)
