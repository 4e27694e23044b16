"""Pitch of speech, frame by frame beside its mel: log2 of the hertz, and whether it is voiced.

The flow tells a voice's pitch from the units, and the vocoder makes its pulses of it. In recordings it is heard
by SwiftF0 (arXiv 2508.18440), for frames that have their middle where those of the mel have it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cslm.audio import SAMPLE_RATE, Samples
from cslm.decoder.mel import BINS, HOP

if TYPE_CHECKING:
    from swift_f0 import SwiftF0

FEATURES = BINS + 2
"""Log mel, log2 of the pitch in hertz, and 1 in voiced frames: what a frame of speech is made of."""
LOWEST, HIGHEST = 50.0, 500.0
"""Hertz."""
UNKNOWN = 150.0
"""Hertz of speech without a voiced frame."""
VOICED = 0.5


def track(samples: Samples) -> Tensor:
    """(n,) samples at 16 kHz -> (n // 256, 2): log2 of the pitch, and 1 in voiced frames.

    Between voiced frames the pitch goes on in a straight line, before the first and after the last it stays.
    """
    frames = len(samples) // HOP
    if not frames:
        return torch.zeros(0, 2)
    heard = _detector().detect(samples, SAMPLE_RATE, LOWEST, HIGHEST)
    voiced = heard.confidence >= VOICED
    where = np.flatnonzero(voiced)
    known = np.log2(heard.pitch_hz[where]) if len(where) else np.log2([UNKNOWN])
    pitch = np.interp(np.arange(frames), where if len(where) else [0], known)
    return torch.from_numpy(np.stack([pitch, voiced], -1)).float()


@functools.cache
def _detector() -> SwiftF0:
    from swift_f0 import SwiftF0  # whoever only speaks needs none

    return SwiftF0(threads=1)
