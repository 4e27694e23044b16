"""Which language a text is in: by its script, and by its words where that is not enough."""

from __future__ import annotations

import pytest

from cslm.languages import language_of


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the capital of France?", "en"),
        ("La capital de Francia es París.", "es"),
        ("Dime qué día viene después del lunes.", "es"),
        ("法国的首都是巴黎。", "zh"),
        ("打开Wi-Fi吧", "zh"),
        ("Сколько времени?", None),
    ],
)
def test_script_and_words_tell(text: str, language: str | None) -> None:
    assert language_of(text, ["en", "zh", "es"]) == language


def test_only_languages_in_question_are_told_apart() -> None:
    assert language_of("La capital de Francia es París.", ["en", "zh"]) == "en"
    assert language_of("12", ["zh", "en"]) == "zh", "without letters it could be any"
    assert language_of("Hello there, my friend", ["xx-none", "en"]) == "xx-none", "of unknown ones the first"
