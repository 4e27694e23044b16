"""What is a question, and what to say to all that is none: silence, noise, music, an hour, no recording at all.

Whether there is speech in a recording tells Silero's detector (the one in faster-whisper). The speech tokenizer
cannot: it was trained on speech alone, and hears five to nine sounds of speech in a second of noise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from faster_whisper.vad import get_speech_timestamps

from cslm.audio import SAMPLE_RATE, BadAudio, Samples, TooLong, decode
from cslm.tokenizer import Tokenizer
from cslm.units import merge_runs

SHORTEST_S, LONGEST_S = 0.3, 30.0
QUIETEST_DB = -50.0
SHORTEST_SPEECH_MS, SHORTEST_PAUSE_MS = 250, 100
"""A stretch of speech is a question; of noise, tones and melodies Silero takes at most 0.1 s for speech."""
EDGE_MS = 50
"""What stays of a pause before and behind speech: that of the recordings which the models learnt from. Longer
ones make units that they have never seen, and no question is understood any more (benchmarks/log.md)."""

REFUSALS = {
    "en": {
        "empty": "I heard nothing: the recording is empty or shorter than 0.3 seconds.",
        "long": "The question is too long for me: please ask in at most {seconds} seconds.",
        "silent": "I heard only silence. Is the microphone on?",
        "noise": "I heard sound, but no speech. Please ask again.",
        "unwritten": "Please write a question.",
        "wordy": "The question is too long for me: please ask in fewer words.",
    },
    "zh": {
        "empty": "我什么都没听到，录音是空的，或者不到零点三秒。",
        "long": "这个问题太长了，请在{seconds}秒之内提问。",
        "silent": "我只听到一片寂静，麦克风打开了吗？",
        "noise": "我听到了声音，但没有听到人说话，请再说一遍。",
        "unwritten": "请写一个问题。",
        "wordy": "这个问题太长了，请用更少的字提问。",
    },
}


class NoQuestion(ValueError):
    """There is nothing to answer; the message is for the person who asked, in the language of the answer."""

    @classmethod
    def because(cls, reason: str, language: str | None, seconds: int = 0) -> NoQuestion:
        """The words for a reason (a key of `REFUSALS`); in English where there are none in `language`."""
        return cls(REFUSALS.get(language or "en", REFUSALS["en"])[reason].format(seconds=seconds))


def read_recording(source: bytes | Path, language: str | None = None, longest_s: float = LONGEST_S) -> Samples:
    """Samples (n,) at 16 kHz of an audio file.

    A file of hours is refused unread; the person who asked is told `longest_s`, in `language`, as by `hear`.

    Raises:
        NoQuestion: it cannot be used as a recording.
    """
    try:
        return decode(source, 10 * LONGEST_S)
    except TooLong as error:
        raise NoQuestion.because("long", language, int(min(longest_s, LONGEST_S))) from error
    except BadAudio as error:
        raise NoQuestion(f"This recording cannot be used: {error}. Allowed: WAV, FLAC, MP3 or Ogg.") from error


def hear(
    samples: Samples, tokenizer: Tokenizer, language: str | None, longest_s: float = LONGEST_S
) -> list[int]:
    """Units, runs merged, of a spoken question (n,) at 16 kHz that is to be answered in `language`.

    Pauses are shortened: before, behind and within the question. If it is too long, `longest_s` is what the
    person who asked is told: so much speech the model takes (cslm.limits).

    Raises:
        NoQuestion: nothing, silence, no speech, or more than 30 s.
    """
    if len(samples) < SHORTEST_S * SAMPLE_RATE:
        raise NoQuestion.because("empty", language)
    if len(samples) > LONGEST_S * SAMPLE_RATE:
        raise NoQuestion.because("long", language, int(min(longest_s, LONGEST_S)))
    if float(np.square(samples, dtype=np.float64).mean()) <= 10 ** (QUIETEST_DB / 10):
        raise NoQuestion.because("silent", language)
    spoken = get_speech_timestamps(
        samples,
        min_speech_duration_ms=SHORTEST_SPEECH_MS,
        min_silence_duration_ms=SHORTEST_PAUSE_MS,
        speech_pad_ms=EDGE_MS,
    )
    if not spoken:
        raise NoQuestion.because("noise", language)
    [frames] = tokenizer.encode([np.concatenate([samples[each["start"] : each["end"]] for each in spoken])])
    units, _ = merge_runs(frames)
    return units
