"""Audio files in, 16 kHz mono samples out, and back into compact files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

SAMPLE_RATE = 16_000
MAX_CHANNELS = 2
WHOLE = 0.99
"""Share of the declared samples that a whole file gives: MP3 declares its encoder's delay too."""
OPUS_COMPRESSION = 0.94
"""libsndfile's scale from 0 (256 kbit/s) to 1 (6 kbit/s): 0.94 is about 21 kbit/s, transparent for speech."""

Samples = npt.NDArray[np.float32]


class BadAudio(ValueError):
    """A file that holds no usable speech signal; the message says why, for the person who made it."""


class TooLong(BadAudio):
    """More sound than is allowed."""


def decode(source: bytes | Path, max_duration_s: float = float("inf")) -> Samples:
    """Decode WAV, FLAC, MP3, Ogg Opus/Vorbis or NIST SPHERE to mono float32 (samples,) at 16 kHz.

    Channels are averaged. The length is checked before decoding, so that a three-hour file costs nothing.

    Raises:
        BadAudio: unreadable, truncated, empty, more than two channels, longer than `max_duration_s`,
            or with NaN or infinite samples.
    """
    stream: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    with stream:
        try:
            with open_audio(stream) as file:
                if file.channels > MAX_CHANNELS:
                    raise BadAudio(f"{file.channels} channels; mono or stereo is allowed")
                if file.frames > max_duration_s * file.samplerate:
                    seconds = file.frames / file.samplerate
                    raise TooLong(f"{seconds:.1f} s long; at most {max_duration_s:g} s is allowed")
                frames, rate = file.frames, file.samplerate
                samples = file.read(dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise BadAudio(f"not readable as audio: {error.error_string}") from error
    if not len(samples):
        raise BadAudio("no samples")
    if len(samples) < WHOLE * frames:
        raise BadAudio(f"truncated: {len(samples)} of {frames} samples could be read")
    if not np.isfinite(samples).all():
        raise BadAudio("NaN or infinite samples")
    return resample(samples.mean(axis=1), rate)


def open_audio(stream: BinaryIO) -> soundfile.SoundFile:
    """The open file `stream`, whose content alone tells its format.

    Raises:
        soundfile.LibsndfileError: it is of no known format. (From an object with a name soundfile would take
            the name's ending for the format, and ask for the rate of a `.raw`.)
    """
    return soundfile.SoundFile(_Nameless(stream))


class _Nameless:
    """A binary stream without its name."""

    def __init__(self, stream: Any) -> None:
        self.readinto, self.read, self.seek, self.tell = stream.readinto, stream.read, stream.seek, stream.tell


def resample(samples: Samples, rate: int) -> Samples:
    """Resample (samples,) to 16 kHz with soxr at high quality; the same array if that is its rate."""
    if rate == SAMPLE_RATE:
        return samples
    return np.asarray(soxr.resample(samples, rate, SAMPLE_RATE), np.float32)


def change_speed(samples: Samples, speed: float) -> Samples:
    """Play (samples,) `speed` times as fast, which raises the pitch too: another voice (Ko et al. 2015)."""
    return resample(samples, round(SAMPLE_RATE * speed))


def encode_opus(samples: Samples) -> bytes:
    """Ogg Opus file of (samples,) at about 21 kbit/s. Samples over full scale are scaled down, not clipped."""
    return _encode(samples, format="OGG", subtype="OPUS", compression_level=OPUS_COMPRESSION)


def encode_flac(samples: Samples) -> bytes:
    """Lossless 16-bit FLAC file of (samples,). Samples over full scale are scaled down, not clipped."""
    return _encode(samples, format="FLAC", subtype="PCM_16")


def encode_wav(samples: Samples) -> bytes:
    """16-bit WAV file of (samples,). Samples over full scale are scaled down, not clipped."""
    return _encode(samples, format="WAV", subtype="PCM_16")


def _encode(samples: Samples, **kind: Any) -> bytes:
    peak = float(np.abs(samples).max(initial=0.0))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples / max(1.0, peak), SAMPLE_RATE, **kind)
    return buffer.getvalue()
