"""What a row is refused for, and the words it is told in."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import soundfile

from cslm.audio import SAMPLE_RATE, decode, encode_flac
from cslm.validation.checks import Limits, pair_checks, refusals, statistics_of_texts, statistics_of_utterance
from cslm.validation.checks import utterance_checks as checks_of
from cslm.validation.signal import measure
from cslm.validation.text import characters, control_characters, says_little, script_share, text_key

LIMITS = Limits(
    languages=["en", "zh"],
    min_duration_s=0.3,
    max_duration_s=30.0,
    max_clipped=0.01,
    min_level_db=-50.0,
    characters_per_second={"en": (4.0, 30.0), "zh": (1.0, 12.0)},
    speakers_apart=["heldout_voice"],
)


def tone(seconds: float = 1.0, peak: float = 0.3) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (peak * np.sin(np.arange(round(seconds * SAMPLE_RATE)) * 0.17)).astype(np.float32)


def reasons(samples: Any, text: str = "Hello there", language: str = "en", **changes: Any) -> str:
    audio = samples if isinstance(samples, bytes) else encode_flac(samples)
    claimed = len(samples) / SAMPLE_RATE if not isinstance(samples, bytes) else 1.0
    row = {"id": "a", "speaker": "s", "source": "c", "split": "train", "sample_rate": 16_000}
    row |= {"duration_s": claimed, "text": text, "language": language, **changes}
    return refusals(checks_of(LIMITS), statistics_of_utterance(row, measure(audio, LIMITS.max_duration_s)))


def test_good_rows_pass() -> None:
    assert reasons(tone()) == ""
    assert reasons(tone(), "三加四等于七。", "zh") == ""
    assert reasons(tone(), "我用 iPhone 手机", "zh") == ""


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (tone(0.2), "0.20 s long; 0.3 to 30 s is allowed"),
        (tone(40), "40.00 s long; 0.3 to 30 s is allowed"),
        (np.zeros(SAMPLE_RATE, np.float32), "silent: level -120 dB; at least -50 dB is needed"),
        (tone() * 0.001, "silent: level"),
        (np.clip(tone() * 10, -1, 1), "of the samples are clipped; at most 1.0% is allowed"),
        (b"junk", "not readable as audio"),
    ],
)
def test_bad_signals(samples: Any, reason: str) -> None:
    assert reason in reasons(samples)


@pytest.mark.parametrize(
    ("text", "language", "reason"),
    [
        ("", "en", "empty text: no letter or digit in it"),
        (" ... ", "en", "empty text"),
        ("你好世界", "en", "text is not in the script of 'en': only 0% of its words are"),
        ("Привет мир", "en", "text is not in the script of 'en'"),
        ("hello there", "zh", "text is not in the script of 'zh'"),
        ("Hello\x07 there", "en", "control characters in the text: U+0007"),
        ("Hello\ufeff there\u200b", "en", "control characters in the text: U+200B U+FEFF"),
        ("Hello there " * 4, "en", "speech rate 40.0 characters/s; 4 to 30 is plausible for en"),
        ("Hm", "en", "speech rate 2.0 characters/s; 4 to 30 is plausible for en"),
        ("Bonjour", "fr", "language 'fr' is not one of params.yaml's languages (en, zh)"),
    ],
)
def test_bad_texts(text: str, language: str, reason: str) -> None:
    assert reason in reasons(tone(), text, language)


def test_audio_shorter_than_its_row_says() -> None:
    assert "the audio lasts 1.00 s, but its row says 2.50 s" in reasons(tone(), duration_s=2.5)


@pytest.mark.parametrize("claimed", [float("nan"), float("inf"), float("-inf")])
def test_a_length_that_is_no_number(claimed: float) -> None:
    assert f"but its row says {claimed} s" in reasons(tone(), duration_s=claimed)


def test_sample_rate_and_split() -> None:
    assert reasons(tone(), sample_rate=8_000) == "sample rate 8000 Hz; 16000 is needed"
    assert reasons(tone(), split="holdout") == "split 'holdout' is unknown"


def test_dialogues_name_the_side_that_is_wrong() -> None:
    row = {"id": "d", "split": "train", "question_language": "en", "question": "Who?"}
    row |= {"question_speech": "", "answer_language": "zh", "answer": "me", "answer_speech": ""}
    sides = ("question", "answer")
    told = refusals(pair_checks(sides, LIMITS), statistics_of_texts(row, sides))
    assert told == "answer is not in the script of 'zh': only 0% of its words are"


def test_lines_and_tabs_are_for_what_is_written() -> None:
    row = {"id": "d", "split": "train", "question_language": "en", "question": "Who?"}
    row |= {"question_speech": "", "answer_language": "en", "answer": "Two:\n\tone, two.", "answer_speech": ""}
    sides = ("question", "answer")

    def told(**changes: str) -> str:
        return refusals(pair_checks(sides, LIMITS), statistics_of_texts(row | changes, sides))

    assert told() == told(question_speech="u1") == ""
    assert told(answer_speech="u1") == "control characters in the answer: U+0009 U+000A"
    assert told(answer="Ring\x07") == "control characters in the answer: U+0007"
    assert reasons(tone(), "Hello\nthere") == "control characters in the text: U+000A"


def test_level_and_clipping_of_a_known_signal() -> None:
    signal = measure(encode_flac(tone(peak=0.5)), 30)
    assert signal.level_db == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.01)  # the RMS of a sine
    assert signal.peak == pytest.approx(0.5, abs=0.001)
    assert signal.clipped == 0
    assert signal.duration_s == 1


def test_equal_sound_has_an_equal_hash_whatever_the_container() -> None:
    wav = io.BytesIO()
    flac = encode_flac(tone())
    soundfile.write(wav, decode(flac), SAMPLE_RATE, format="WAV", subtype="PCM_16")
    assert measure(wav.getvalue(), 30).audio_hash == measure(flac, 30).audio_hash
    assert measure(encode_flac(tone(peak=0.31)), 30).audio_hash != measure(flac, 30).audio_hash


def test_text_statistics() -> None:
    assert characters("三加四, ok 7!") == 6
    assert script_share("ｈｅｌｌｏ", "en") == 1  # full-width Latin is Latin
    assert script_share("我用 iPhone 手机", "zh") == 0.8  # a Latin word counts as much as a character
    assert script_share("ありがとう", "zh") == 0
    assert script_share("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "fa") == 1
    assert control_characters("\u0645\u06cc\u200c\u062e") == ""  # Persian spells with a zero-width non-joiner
    assert text_key("What IS it?", "en") == text_key("what is it", "en") != text_key("what is it", "de")


def test_what_says_little_is_what_many_say() -> None:
    for text in ("嗯", "对对对", "YEAH", "Oh, thank you!", "- - - yes", ""):
        assert says_little(text), text
    for text in ("鸭子有几条腿？", "What is it called?", "What is 12 plus 7?"):
        assert not says_little(text), text
