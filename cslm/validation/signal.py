"""Statistics of one utterance's audio: the only place of validation that decodes."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from cslm.audio import SAMPLE_RATE, BadAudio, decode

FULL_SCALE = 0.999
SILENCE_DB = -120.0
"""Level of digital silence, which has no logarithm."""


@dataclass(frozen=True)
class Signal:
    """What the audio of an utterance is like; NaN everywhere and an `error` if it cannot be decoded."""

    duration_s: float = math.nan
    peak: float = math.nan
    """Largest absolute sample; 1 is full scale."""
    clipped: float = math.nan
    """Share of the samples at full scale."""
    level_db: float = math.nan
    """Root mean square of the samples, dB of full scale."""
    audio_hash: int = 0
    """64-bit BLAKE2b of the samples as 16-bit integers: equal for equal sound, whatever the container."""
    error: str | None = None


def measure(audio: bytes, max_duration_s: float) -> Signal:
    """Decode and measure one utterance. Audio longer than ten times `max_duration_s` is not decoded."""
    try:
        samples = decode(audio, 10 * max_duration_s)
    except BadAudio as error:
        return Signal(error=str(error))
    magnitude = np.abs(samples)
    power = float(np.dot(samples, samples)) / len(samples)
    whole = (samples * 32767).astype("<i2").tobytes()
    return Signal(
        duration_s=len(samples) / SAMPLE_RATE,
        peak=float(magnitude.max()),
        clipped=float(np.count_nonzero(magnitude >= FULL_SCALE)) / len(samples),
        level_db=max(SILENCE_DB, 10 * math.log10(power)) if power > 0 else SILENCE_DB,
        audio_hash=int.from_bytes(hashlib.blake2b(whole, digest_size=8).digest(), "big", signed=True),
    )
