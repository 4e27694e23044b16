"""Label errors of units, by a recogniser that the test makes up: each unit is a label, numbered by `SOUNDS`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from cslm.evaluation.held_out import Utterance
from cslm.evaluation.labels import label_errors, reading_errors
from cslm.pronunciation import labels
from cslm.tokenizer import SpeechTokenizer

TEXTS = ("Is it far?", "It is not far.")
SOUNDS = sorted({label.name for text in TEXTS for label in labels(text, "en")})


class Ear:
    def log_probs(self, batch: Sequence[Sequence[int]]) -> list[Any]:
        assert all(batch), "the recogniser cannot hear nothing"
        return list(batch)

    def transcribe(self, heard: Sequence[int]) -> list[str]:
        return [SOUNDS[unit] for unit in heard]


EAR = cast(SpeechTokenizer, Ear())


def units(text: str) -> list[int]:
    return [SOUNDS.index(label.name) for label in labels(text, "en")]


def test_units_that_say_their_text_have_no_error() -> None:
    assert label_errors(EAR, [(text, units(text)) for text in TEXTS], "en", 1) == {
        "label_error": 0,
        "label_error_ci95": [0, 0],
        "label_n": 2,
    }


def test_what_is_left_out_and_what_is_silent_counts() -> None:
    said = [(TEXTS[0], units(TEXTS[0])[1:]), (TEXTS[1], [])]
    total = len(units(TEXTS[0])) + len(units(TEXTS[1]))
    expected = (1 + len(units(TEXTS[1]))) / total
    assert label_errors(EAR, said, "en", 1)["label_error"] == pytest.approx(expected)


def test_texts_without_a_sound_are_no_figure() -> None:
    assert label_errors(EAR, [("...", [1]), ("", [])], "en", 1) == {}


def test_reading_stands_beside_the_recording() -> None:
    utterance = Utterance("u", "en", TEXTS[0], tuple(units(TEXTS[0])))
    figures = reading_errors(EAR, [utterance], {"u": units(TEXTS[0])[:-1]}, 1)["tts"]["en"]
    assert figures["reference_label_error"] == 0
    assert figures["label_error"] == pytest.approx(1 / len(units(TEXTS[0])))
