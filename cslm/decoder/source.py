"""What a vocal tract filters: pulses at the pitch of the voice, and noise.

A network that must write phases itself needs long training against discriminators before a vowel stops buzzing.
Here the phase of each harmonic comes from the pitch, and what is left to learn is a smooth filter (DDSP, arXiv
2001.04643; HiFTNet, arXiv 2309.09493).
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from cslm.audio import SAMPLE_RATE
from cslm.decoder.mel import HOP

STRETCH, STEP = 512, 128
"""Samples of a window, and from one to the next: half of the mel's, as filters need not part harmonics."""
EACH = HOP // STEP
"""Windows that have their middle in one frame: where it begins, and 8 ms later."""
LATE = 2
"""Frames that pass before the last sample of a frame's windows is known."""
PAST = LATE * HOP + STRETCH // 2
TOP = 7600.0
"""Hertz of the highest harmonic."""
NOISE_SAMPLES = 1 << 17


class Source:
    """The source of one batch of utterances, as a whole or piece by piece.

    Args:
        position: where in the noise each utterance begins (B, 1); a training varies it, answers do not.
    """

    def __init__(self, position: Tensor | int = 0) -> None:
        self._cycles: Tensor | float = 0.0
        self._before: Tensor | None = None
        self._tail: Tensor | None = None
        self._position = position

    @torch.no_grad()
    def push(self, pitch: Tensor) -> tuple[Tensor, Tensor]:
        """More pitch (B, M, 2) -> spectra (B, 2 M, 257) of pulses and of noise, `LATE` frames late."""
        pulses = self._pulses(pitch)
        device = pitch.device
        at = (self._position + torch.arange(pulses.shape[-1], device=device)) % NOISE_SAMPLES
        self._position = self._position + pulses.shape[-1]
        both = torch.stack([pulses, noise().to(device)[at].expand_as(pulses)])
        past = both.new_zeros(*both.shape[:-1], PAST) if self._tail is None else self._tail
        both = torch.cat([past, both], -1)
        self._tail = both[..., -PAST:]
        stretches = both[..., PAST - STRETCH : -STEP].unfold(-1, STRETCH, STEP)
        spectra = torch.fft.rfft(stretches * window().to(device))
        return spectra[0], spectra[1]

    def _pulses(self, pitch: Tensor) -> Tensor:
        """(B, M, 2) -> (B, 256 M): harmonics in phase, of power 1, from one frame's pitch to the next.

        A voice comes and goes at the pitch of its own frames, not on the way to that of silence.
        """
        before = pitch[:, :1] if self._before is None else self._before
        self._before = pitch[:, -1:]
        begin, end = torch.cat([before, pitch[:, :-1]], 1), pitch
        ends = torch.where(begin[..., 1:] > end[..., 1:], begin, end)
        begins = torch.where(end[..., 1:] > begin[..., 1:], end, begin)
        ramp = (torch.arange(HOP, device=pitch.device) + 1) / HOP
        logarithm = (begins[..., :1] + (ends[..., :1] - begins[..., :1]) * ramp).flatten(1)
        voiced = (begin[..., 1:] + (end[..., 1:] - begin[..., 1:]) * ramp).flatten(1)
        hertz = logarithm.exp2()
        cycles = self._cycles + (hertz.double() / SAMPLE_RATE).cumsum(-1)
        self._cycles = cycles[:, -1:] % 1
        half = math.pi * (cycles % 1).float()
        count = (TOP / hertz).floor()
        below = half.sin()
        peak = below.abs() < 1e-4
        ratio = ((2 * count + 1) * half).sin() / torch.where(peak, torch.ones_like(below), below)
        harmonics = torch.where(peak, count, (ratio - 1) / 2)
        return voiced * harmonics * (2 / count).sqrt()


@functools.cache
def noise() -> Tensor:
    """The same noise (131072,), 8 s of it, for every answer."""
    with torch.inference_mode(False):
        return torch.randn(NOISE_SAMPLES, generator=torch.Generator().manual_seed(0))


@functools.cache
def window() -> Tensor:
    """Periodic Hann window (512,)."""
    with torch.inference_mode(False):
        return torch.hann_window(STRETCH)
