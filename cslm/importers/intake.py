"""Taking in: a found utterance becomes a row of a shard, its audio 16 kHz mono, or is refused."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any, BinaryIO

import soundfile

from cslm.audio import SAMPLE_RATE, BadAudio, decode, encode_flac, open_audio, resample
from cslm.importers.found import Found, Segment, broken
from cslm.tables import SPLITS

MAX_DURATION_S = 120.0
"""Nothing longer is an utterance; refused before it is decoded, so that it costs neither time nor memory."""
MISSING = 0.01
"""Share of the samples a header promises that may be absent: sloppy writers are off by a few."""
UNKNOWN_LENGTH = 0xFFFF_0000
"""WAV headers of piped audio promise (nearly) 4 GiB, which means nothing."""
KEPT = {("OGG", "OPUS"), ("FLAC", "PCM_16")}
CONTROL = re.compile(r"[\x00-\x1f\x7f/\\]")
LANGUAGE = re.compile(r"[a-z]{2,3}")


class BadRow(ValueError):
    """A row whose words, not whose audio, cannot be used."""


def take_in(found: Found, source: str, prefix: str = "") -> dict[str, Any]:
    """The row of `cslm.shards.UTTERANCE` for a found utterance.

    Ogg Opus and FLAC bytes at 16 kHz mono pass as they are, undecoded (validation decodes them);
    everything else is decoded, resampled and stored as FLAC.

    Raises:
        BadAudio, BadRow, OSError: the row is unusable; the message says why.
    """
    _check_words(found)
    audio, duration_s = _compact(found)
    return {
        "id": prefix + found.id,
        "audio": audio,
        "duration_s": duration_s,
        "sample_rate": SAMPLE_RATE,
        "text": found.text,
        "language": found.language,
        "speaker": found.speaker,
        "source": found.source or source,
        "split": found.split,
    }


def _check_words(found: Found) -> None:
    if why := broken(found.id + found.text + found.speaker):
        raise BadRow(why)
    if not found.id or CONTROL.search(found.id):
        raise BadRow(f"id {found.id!r}: must not be empty, nor hold a slash or a control character")
    if found.split not in SPLITS:
        raise BadRow(f"split {found.split!r} is unknown; allowed: {', '.join(SPLITS)}")
    if not LANGUAGE.fullmatch(found.language):
        raise BadRow(f"language {found.language!r}: a code of two or three letters is needed, such as en")


def _compact(found: Found) -> tuple[bytes, float]:
    """Encoded audio and its duration in seconds."""
    if isinstance(found.audio, Segment):
        samples = _read_segment(found.audio)
        return encode_flac(samples), len(samples) / SAMPLE_RATE
    with found.audio.open("rb") if isinstance(found.audio, Path) else io.BytesIO(found.audio) as stream:
        seconds, kept = _look(stream)
    if isinstance(found.audio, bytes) and kept:
        return found.audio, seconds if found.duration_s is None else found.duration_s
    samples = decode(found.audio, MAX_DURATION_S)
    return encode_flac(samples), len(samples) / SAMPLE_RATE


def _look(stream: BinaryIO) -> tuple[float, bool]:
    """Duration in seconds, and whether the file may stay as it is; from the header alone.

    libsndfile shortens a cut-off WAV, SPHERE or Ogg file without a word, so their own marks are read.
    """
    try:
        with open_audio(stream) as file:
            seconds = file.frames / file.samplerate
            kind, extra = (file.format, file.subtype), file.extra_info
            kept = kind in KEPT and file.samplerate == SAMPLE_RATE and file.channels == 1
            frames = file.frames
    except soundfile.LibsndfileError as error:
        raise BadAudio(f"not readable as audio: {error.error_string}") from error
    if seconds > MAX_DURATION_S:
        raise BadAudio(f"{seconds:.0f} s long; at most {MAX_DURATION_S:g} s is allowed")
    stream.seek(0)
    if kind[0] == "OGG" and not _ends(stream):
        raise BadAudio(f"truncated: the end of the Ogg stream is missing after {seconds:.2f} s")
    promised, there = 0, 1
    if found := re.search(r"^data : (\d+) \(should be (\d+)\)", extra, re.MULTILINE):
        promised, there = int(found[1]), int(found[2])
    elif kind[0] == "NIST" and (counted := re.search(rb"\nsample_count -i (\d+)", stream.read(1024))):
        promised, there = int(counted[1]), frames
    if there < promised * (1 - MISSING) and promised < UNKNOWN_LENGTH:
        raise BadAudio(f"truncated: {there / promised:.0%} of what the header promises is there")
    return seconds, kept


def _ends(stream: BinaryIO) -> bool:
    """Whether an Ogg file ends with a whole page that carries the end-of-stream flag (RFC 3533, section 6)."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, size - 0x1_0200))  # a page is at most 65,307 bytes long
    tail = stream.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if not page.startswith(b"OggS") or len(page) < 27 or not page[5] & 4:
        return False
    sizes = page[27 : 27 + page[26]]  # of the segments that follow
    return len(page) >= 27 + page[26] + sum(sizes)


def _read_segment(segment: Segment) -> Any:
    """(samples,) float32 at 16 kHz of one channel of a part of a recording."""
    if not 0 < segment.duration_s <= MAX_DURATION_S:
        raise BadAudio(f"{segment.duration_s:g} s long; at most {MAX_DURATION_S:g} s is allowed")
    if not 0 <= segment.start_s < math.inf:
        raise BadAudio(f"begins at {segment.start_s:g} s; a number of seconds from 0 on is needed")
    try:
        with segment.path.open("rb") as stream, open_audio(stream) as file:
            wanted = round(segment.duration_s * file.samplerate)
            if segment.channel >= file.channels:
                raise BadAudio(f"no channel {segment.channel}; the file has {file.channels}")
            file.seek(min(file.frames, round(segment.start_s * file.samplerate)))
            samples = file.read(wanted, dtype="float32", always_2d=True)[:, segment.channel]
            rate = file.samplerate
    except soundfile.LibsndfileError as error:
        raise BadAudio(f"not readable as audio: {error.error_string}") from error
    if len(samples) < wanted * (1 - MISSING):
        raise BadAudio(f"truncated: {len(samples) / rate:.2f} of {segment.duration_s:g} s are there")
    if samples.size and not abs(samples).max() < float("inf"):
        raise BadAudio("NaN or infinite samples")
    return resample(samples, rate)
