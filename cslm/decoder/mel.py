"""Log-mel spectrograms of the speech decoder: those of SpeechT5 (80 bins, 64 ms windows, 62.5 frames a second).

Published vocoders for that format (`microsoft/speecht5_hifigan`) understand them.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.audio_utils import mel_filter_bank

from cslm.audio import SAMPLE_RATE

BINS = 80
WINDOW = 1024
HOP = 256
FLOOR = 1e-10
LOWEST_HZ, HIGHEST_HZ = 80.0, 7600.0


def log_mel(samples: Tensor) -> Tensor:
    """(..., n) samples at 16 kHz -> log10 mel (..., n // 256, 80); frame j has its middle at sample 256 j."""
    magnitude = spectrum(samples).abs().transpose(-1, -2)
    return (magnitude @ filters().to(samples.device)).clamp_min(FLOOR).log10()


def spectrum(samples: Tensor) -> Tensor:
    """(..., n) samples -> complex spectrum (..., 513, n // 256)."""
    shape = samples.shape[:-1]
    flat = F.pad(samples.reshape(-1, samples.shape[-1]), (0, WINDOW))
    hann = window().to(samples.device)
    parts = torch.stft(flat, WINDOW, HOP, window=hann, center=True, pad_mode="reflect", return_complex=True)
    return parts[..., : samples.shape[-1] // HOP].reshape(*shape, WINDOW // 2 + 1, -1)


@functools.cache
def window() -> Tensor:
    """Periodic Hann window (1024,)."""
    with torch.inference_mode(False):  # whoever asks first: a training may come later
        return torch.hann_window(WINDOW)


@functools.cache
def filters() -> Tensor:
    """Triangular filters (513, 80) on Slaney's mel scale, each of unit area."""
    bank = mel_filter_bank(
        WINDOW // 2 + 1, BINS, LOWEST_HZ, HIGHEST_HZ, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
    )
    with torch.inference_mode(False):
        return torch.from_numpy(bank).float()
