"""Pitch is heard where it is, and the source of a voice swings at it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.signal import sawtooth

from cslm.audio import SAMPLE_RATE, Samples
from cslm.decoder.pitch import track
from cslm.decoder.source import Source, window
from cslm.decoder.vocoder import SourceFilterVocoder


def hum(hertz: np.ndarray) -> Samples:
    """A voice without a mouth, at a frequency for each sample."""
    return (0.3 * sawtooth(2 * np.pi * np.cumsum(hertz) / SAMPLE_RATE, 0.3)).astype(np.float32)


def test_a_glide_is_heard_frame_by_frame() -> None:
    hertz = np.geomspace(110, 220, 2 * SAMPLE_RATE)
    heard = track(hum(hertz)).numpy()
    assert heard.shape == (125, 2)
    inner = slice(5, 120)
    assert (heard[inner, 1] == 1).all()
    assert heard[inner, 0] == pytest.approx(np.log2(hertz[:: SAMPLE_RATE // 1000 * 16][:125])[inner], abs=0.03)


def test_pitch_goes_on_through_a_pause_which_is_not_voiced() -> None:
    tone, pause = hum(np.full(SAMPLE_RATE, 120.0)), np.zeros(SAMPLE_RATE // 2, np.float32)
    heard = track(np.concatenate([pause, tone, pause, hum(np.full(SAMPLE_RATE, 240.0))])).numpy()
    assert not heard[:28, 1].any()
    assert not heard[97:122, 1].any()
    assert heard[:30, 0] == pytest.approx(np.log2(120), abs=0.03), "before the first voiced frame it stays"
    between = heard[100:120, 0]
    assert (np.diff(between) > 0).all(), "from one voiced frame to the next in a straight line"


def test_speech_without_a_voice_has_a_pitch_too() -> None:
    heard = track(np.zeros(SAMPLE_RATE, np.float32))
    assert heard.shape == (62, 2)
    assert heard.isfinite().all()
    assert not heard[:, 1].any()
    assert track(np.zeros(100, np.float32)).shape == (0, 2)


def test_pulses_have_every_harmonic_and_the_power_of_noise() -> None:
    pitch = torch.tensor([np.log2(250.0), 1.0]).expand(1, 60, 2).float()
    pulses, noise = Source().push(pitch)
    assert pulses.shape == noise.shape == (1, 120, 257)
    power = pulses[0, 20:].abs().square().mean(0)
    harmonics = power[8:240:8]  # 31.25 Hz a bin
    assert harmonics.max() < 1.2 * harmonics.min()
    assert power[4:240:8].max() < 1e-3 * harmonics.min()
    of_white = window().square().sum().item()
    assert power.mean().item() == pytest.approx(of_white, rel=0.2)
    assert noise[0, 20:].abs().square().mean().item() == pytest.approx(of_white, rel=0.2)


def test_nothing_pulses_in_unvoiced_frames() -> None:
    pulses, noise = Source().push(torch.tensor([np.log2(250.0), 0.0]).expand(1, 20, 2).float())
    assert not pulses.abs().any()
    assert noise[0, 6:].abs().min() > 0


@pytest.mark.parametrize("hertz", [90.0, 230.0])
def test_a_voice_speaks_at_the_pitch_it_is_given(hertz: float) -> None:
    torch.manual_seed(1)
    vocoder = SourceFilterVocoder(16, 1).eval()
    with torch.no_grad():
        vocoder.head.weight.zero_()
        vocoder.head.bias.zero_().unflatten(0, (2, 3, -1))[:, 2] = -3.0  # hardly any breath
    features = torch.zeros(1, 80, 82)
    features[..., 80], features[..., 81] = np.log2(hertz), 1
    with torch.inference_mode():
        heard = track(0.1 * vocoder(features)[0].numpy())
    assert heard[10:70, 0].numpy() == pytest.approx(np.log2(hertz), abs=0.03)
