"""What the decoder learns from is of one time: units, pitch, mel and samples of each stretch."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from cslm.audio import SAMPLE_RATE
from cslm.decoder.corpus import SpeechFile, acoustic_batch, waveform_batch
from cslm.decoder.mel import log_mel

FRAMES = 75
"""Three seconds."""


@pytest.fixture
def corpus(tmp_path: Path) -> SpeechFile:
    """Two utterances that rise by an octave in three seconds, from 110 and from 160 Hz; units count frames."""
    speech = SpeechFile(tmp_path)
    rows = []
    for voice, low in enumerate((110.0, 160.0)):
        hertz = np.geomspace(low, 2 * low, 3 * SAMPLE_RATE)
        cycles = np.cumsum(hertz) / SAMPLE_RATE
        rows.append(((0.6 * (cycles % 1) - 0.3).astype(np.float32), np.arange(FRAMES), voice))
    speech.write(iter(rows))
    return speech


def test_a_stretch_has_the_pitch_and_the_mel_of_its_units(corpus: SpeechFile) -> None:
    begins = set()
    for seed in range(8):
        batch = acoustic_batch(corpus, 40, 20, random.Random(seed))
        assert batch.features.shape[1:] == (50, 82)
        for units, features, voice in zip(batch.frames, batch.features, batch.voices.tolist(), strict=True):
            begin = int(units[0])
            assert units.tolist() == list(range(begin, begin + 20))
            seconds = begin / 25 + torch.arange(50) * 0.016
            expected = np.log2((110.0, 160.0)[voice]) + seconds / 3
            inner = slice(3, 47)
            assert features[inner, 80].tolist() == pytest.approx(expected[inner].tolist(), abs=0.03)
            begins.add(begin)
    assert len(begins) > 3
    assert all(begin % 2 == 0 for begin in begins), "a mel frame begins with every second unit frame"


def test_features_are_those_of_the_samples(corpus: SpeechFile) -> None:
    features, samples = waveform_batch(corpus, 3, 25, random.Random(1))
    assert samples.shape == (3, 16_000)
    assert features.shape == (3, 63, 82)
    torch.testing.assert_close(features[:, 2:60, :80], log_mel(samples)[:, 2:60], rtol=0, atol=1e-4)
