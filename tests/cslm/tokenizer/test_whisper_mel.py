"""Whisper's features, against two implementations that are not ours."""

from __future__ import annotations

import numpy as np
import pytest
from faster_whisper.feature_extractor import FeatureExtractor
from transformers import WhisperFeatureExtractor

from cslm.audio import SAMPLE_RATE, Samples
from cslm.tokenizer.whisper_mel import BLOCK, HOP, log_mel


def speech(seconds: float) -> Samples:
    """Something like it: a gliding voice with overtones, in syllables, over faint noise."""
    rng = np.random.default_rng(1)
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * time)) / SAMPLE_RATE
    voice = sum(np.sin(k * phase) / k for k in range(1, 30)) * np.sin(8 * time).clip(0, 1)
    return (0.2 * voice + 1e-3 * rng.normal(size=len(time))).astype(np.float32)


@pytest.mark.parametrize("samples", [201, 16_000, 16_159, 16_160, 123_457, HOP * BLOCK, HOP * BLOCK + 801])
def test_it_is_whisper_s(samples: int) -> None:
    audio = speech(samples / SAMPLE_RATE)
    ours = log_mel(audio)
    assert ours.shape == (128, samples // 160) and ours.dtype == np.float32
    faster = FeatureExtractor(feature_size=128)(audio, padding=0)
    assert np.abs(ours - faster).max() < 1e-4
    hugging_face = WhisperFeatureExtractor(feature_size=128)
    theirs = hugging_face(
        audio, truncation=False, padding="longest", sampling_rate=SAMPLE_RATE, return_tensors="np"
    )
    assert np.abs(ours - theirs.input_features[0]).max() < 1e-4


def test_silence_and_what_is_shorter_than_a_frame() -> None:
    assert (log_mel(np.zeros(1600, np.float32)) == -1.5).all()  # (log10(1e-10) + 4) / 4
    assert log_mel(np.zeros(159, np.float32)).shape == (128, 0)
    assert log_mel(np.ones(160, np.float32)).shape == (128, 1)
