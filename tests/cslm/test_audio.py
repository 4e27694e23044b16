"""Audio files become 16 kHz mono, or an error that says why not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cslm.audio import SAMPLE_RATE, BadAudio, change_speed, decode, encode_flac, encode_opus


def tone(rate: int, seconds: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def file(samples: np.ndarray, rate: int, **options: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize(
    "container", [{"format": "WAV"}, {"format": "FLAC"}, {"format": "OGG", "subtype": "VORBIS"}]
)
def test_any_rate_and_format_becomes_the_same_tone(rate: int, container: dict[str, str]) -> None:
    samples = decode(file(tone(rate), rate, **container))
    assert len(samples) == pytest.approx(SAMPLE_RATE / 2, abs=400)
    peak = np.abs(np.fft.rfft(samples)).argmax() * SAMPLE_RATE / len(samples)
    assert peak == pytest.approx(440, abs=4)


def test_stereo_is_averaged() -> None:
    left = tone(16_000)
    samples = decode(file(np.stack([left, np.zeros_like(left)], 1), 16_000, format="WAV", subtype="FLOAT"))
    np.testing.assert_allclose(samples, left / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not readable"),
        (b"not audio at all", "not readable"),
        (file(np.zeros((100, 8), np.float32), 16_000, format="WAV"), "8 channels"),
        (file(np.zeros(0, np.float32), 16_000, format="WAV"), "no samples"),
        (file(np.full(100, np.nan, np.float32), 16_000, format="WAV", subtype="FLOAT"), "NaN"),
        (file(np.zeros(16_000 * 31, np.float32), 16_000, format="WAV"), "31.0 s long"),
        (file(tone(16_000), 16_000, format="FLAC")[:4000], "truncated|not readable"),
    ],
)
def test_a_bad_file_is_refused_with_the_reason(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(content)
    for source in (content, tmp_path / "bad.wav"):
        with pytest.raises(BadAudio, match=said):
            decode(source, max_duration_s=30)


def test_flac_gives_the_samples_back_and_opus_the_sound() -> None:
    samples = tone(SAMPLE_RATE, seconds=3)
    np.testing.assert_allclose(decode(encode_flac(samples)), samples, atol=1e-4)
    opus = encode_opus(samples)
    assert len(opus) < len(samples) / 4  # bytes: an eighth of 16-bit PCM
    assert np.corrcoef(decode(opus)[: len(samples)], samples[: len(decode(opus))])[0, 1] > 0.95


@pytest.mark.parametrize("encode", [encode_flac, encode_opus])
def test_what_is_too_loud_is_scaled_and_not_clipped(encode: object) -> None:
    decoded = decode(encode(3 * tone(SAMPLE_RATE)))  # type: ignore[operator]
    assert np.abs(np.fft.rfft(decoded))[round(1320 * len(decoded) / SAMPLE_RATE)] < 30  # no third harmonic


def test_faster_is_shorter_and_higher() -> None:
    normal = tone(SAMPLE_RATE, 1.0, 400.0)
    fast = change_speed(normal, 1.25)
    assert len(fast) == pytest.approx(SAMPLE_RATE / 1.25, abs=2)
    peak = np.abs(np.fft.rfft(fast)).argmax() * SAMPLE_RATE / len(fast)
    assert peak == pytest.approx(500, abs=3)
    assert change_speed(normal, 1.0) is normal
