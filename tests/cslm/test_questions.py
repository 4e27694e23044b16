"""What is a question to the speech tokenizer that ships, and what is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cslm.audio import SAMPLE_RATE, Samples, decode, encode_wav
from cslm.evaluation.error_rates import count_errors
from cslm.evaluation.normalization import rules_for
from cslm.generation import SpeechLanguageModel
from cslm.questions import NoQuestion, hear, read_recording
from cslm.tokenizer import SpeechTokenizer
from tests.recordings import held_out_questions, question

ROOT = Path(__file__).parents[2]
RANDOM = np.random.default_rng(1)
NOTES = 261.63 * 2 ** (np.array([0, 2, 4, 5, 7, 9, 11, 12]) / 12)
"""C major."""


@pytest.fixture(scope="module")
def tokenizer() -> SpeechTokenizer:
    return SpeechTokenizer.load(ROOT / "models/tokenizer")


def seconds(length: float) -> Samples:
    return np.arange(int(length * SAMPLE_RATE), dtype=np.float32) / SAMPLE_RATE


def tone(hertz: float, length: float = 3.0) -> Samples:
    return np.asarray(0.3 * np.sin(2 * np.pi * hertz * seconds(length)), np.float32)


def plucked(hertz: float) -> Samples:
    overtones = [tone(number * hertz, 0.4) / number for number in range(1, 6)]
    return np.asarray(np.sum(overtones, 0) * np.exp(-4 * seconds(0.4)), np.float32)


def noise(level: float, length: float = 3.0) -> Samples:
    return (level * RANDOM.standard_normal(int(length * SAMPLE_RATE))).astype(np.float32)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        pytest.param(np.zeros(SAMPLE_RATE // 10, np.float32), "nothing", id="a click on the button"),
        pytest.param(np.zeros(3 * SAMPLE_RATE, np.float32), "silence", id="silence"),
        pytest.param(noise(0.001), "silence", id="a still room"),
        pytest.param(noise(0.03), "no speech", id="noise"),
        pytest.param(noise(0.3), "no speech", id="loud noise"),
        pytest.param(np.cumsum(noise(0.001)), "no speech", id="a rumble"),
        pytest.param(tone(120), "no speech", id="hum"),
        pytest.param(tone(1000), "no speech", id="1 kHz"),
        pytest.param((tone(261.6) + tone(329.6) + tone(392.0)) / 3, "no speech", id="a chord"),
        pytest.param(np.concatenate([plucked(note) for note in NOTES]), "no speech", id="a scale"),
        pytest.param(noise(0.1, 31), "30 seconds", id="too long"),
    ],
)
def test_what_is_no_speech_is_said_in_words(tokenizer: SpeechTokenizer, samples: Samples, words: str) -> None:
    with pytest.raises(NoQuestion, match=words):
        hear(samples, tokenizer, "en")


def test_real_questions_are_heard(tokenizer: SpeechTokenizer) -> None:
    rows = held_out_questions()[::21]
    assert {row["language"] for row in rows} == {"en", "zh"}
    for row in rows:
        assert len(hear(decode(row["audio"]), tokenizer, None)) > 5, row["id"]


def test_a_question_is_heard_through_noise_and_after_a_long_pause(tokenizer: SpeechTokenizer) -> None:
    waited = np.concatenate([noise(0.003, 20), question()])
    assert hear(waited, tokenizer, None)
    quiet = 0.1 * question()
    hiss = float(np.abs(quiet).mean()) / 4 * RANDOM.standard_normal(len(quiet))
    assert hear((quiet + hiss).astype(np.float32), tokenizer, None)


@pytest.fixture(scope="module")
def model() -> SpeechLanguageModel:
    return SpeechLanguageModel.load(ROOT / "models/cslm")


def paused(samples: Samples) -> Samples:
    """As people speak into a microphone: a second before and after, and one to think where it is quiet."""
    loudness = np.convolve(np.square(samples), np.ones(320), "same")
    third = len(samples) // 3
    middle = third + int(loudness[third:-third].argmin())
    return np.concatenate(
        [noise(0.001, 1), samples[:middle], noise(0.001, 1), samples[middle:], noise(0.001, 1)]
    )


def in_noise(samples: Samples) -> Samples:
    """30 dB below full scale, and about 20 below the voice."""
    return (samples + noise(0.01, len(samples) / SAMPLE_RATE + 1)[: len(samples)]).astype(np.float32)


@pytest.mark.parametrize(
    ("spoil", "understood"), [(lambda samples: samples, 0.7), (paused, 0.5), (in_noise, 0.5)]
)
def test_questions_are_understood_with_pauses_and_in_noise(
    tokenizer: SpeechTokenizer,
    model: SpeechLanguageModel,
    spoil: Callable[[Samples], Samples],
    understood: float,
) -> None:
    """By how many are written down word by word."""
    rows = held_out_questions()[::6]
    prompts = [
        model.builder.prompt_dialogue(
            hear(spoil(decode(row["audio"])), tokenizer, None), None, None, "interleaved"
        )
        for row in rows
    ]
    replies = model.generate(prompts, "dialogue", 60, 64)
    written = [reply[1 : reply.index(model.builder.answer_id)] for reply in replies]
    right = [
        count_errors(row["text"], model.builder.decode(tokens), rules_for(row["language"])).total == 0
        for row, tokens in zip(rows, written, strict=True)
    ]
    print(np.mean(right), len(right))
    assert np.mean(right) >= understood


def test_reasons_are_in_the_language_of_the_answer_or_in_english(tokenizer: SpeechTokenizer) -> None:
    silence = np.zeros(SAMPLE_RATE, np.float32)
    for language, words in ((None, "silence"), ("fr", "silence"), ("zh", "寂静")):
        with pytest.raises(NoQuestion, match=words):
            hear(silence, tokenizer, language)


def test_of_a_long_recording_is_told_how_long_a_question_may_be() -> None:
    long = encode_wav(np.zeros(400 * SAMPLE_RATE, np.float32))
    with pytest.raises(NoQuestion, match="请在9秒之内提问"):
        read_recording(long, "zh", 9.0)


def test_what_is_no_recording_says_what_is_allowed() -> None:
    with pytest.raises(NoQuestion, match=r"cannot be used: not readable as audio.*WAV, FLAC, MP3 or Ogg"):
        read_recording(b"Dear model")
