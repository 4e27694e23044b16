"""Judging answers: right, nearly right, in the wrong language."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cslm.evaluation.answers import exact_match, off_target, token_f1, written_language
from cslm.evaluation.normalization import rules_for

EN, ZH, JA, RU = (rules_for(language) for language in ("en", "zh", "ja", "ru"))


def test_exact_match_forgives_writing_but_not_words() -> None:
    assert exact_match("It is twelve, in total.", "it is 12 in total", EN)
    assert exact_match("一共是十二。", "一共是12", ZH)
    assert not exact_match("It is twelve.", "It is thirteen.", EN)
    assert not exact_match("It is twelve.", "", EN)


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("the cat sat", "the cat ran away", 4 / 7),  # 2 shared: precision 2/4, recall 2/3
        ("the the cat", "the cat cat", 2 / 3),  # a word counts as often as both have it
        ("the cat", "a dog", 0.0),
        ("the cat", "", 0.0),
        ("!", "?", 1.0),
    ],
)
def test_f1_by_hand(reference: str, answer: str, expected: float) -> None:
    assert token_f1(reference, answer, EN) == pytest.approx(expected)


def test_f1_of_chinese_counts_characters() -> None:
    assert token_f1("今天很好", "今天不好", ZH) == pytest.approx(0.75)


@given(st.text(max_size=30), st.text(max_size=30))
def test_f1_is_symmetric_and_a_fraction(one: str, other: str) -> None:
    score = token_f1(one, other, ZH)
    assert 0 <= score <= 1
    assert score == pytest.approx(token_f1(other, one, ZH))


@given(
    st.text(alphabet="abcdefghijklmnopqrstuvwxyz ,.!", min_size=1).filter(lambda t: any(map(str.isalpha, t)))
)
def test_latin_text_is_english_and_not_chinese(text: str) -> None:
    assert not off_target(text, EN)
    assert off_target(text, ZH)
    assert written_language(text, ["en", "zh"]) == "en"


@given(st.text(alphabet="天地玄黄宇宙洪荒，。", min_size=1).filter(lambda t: any(map(str.isalpha, t))))
def test_han_text_is_chinese_and_not_english(text: str) -> None:
    assert not off_target(text, ZH)
    assert off_target(text, EN)
    assert off_target(text, RU)
    assert written_language(text, ["en", "zh"]) == "zh"


def test_a_name_in_latin_letters_does_not_change_the_language() -> None:
    assert not off_target("在英语里，你可以说 good morning。", ZH)
    assert not off_target("In Chinese, you say 早上好 when you meet someone early.", EN)


def test_languages_of_one_script_are_told_apart() -> None:
    languages = ["en", "zh", "es"]
    assert written_language("The capital of Greece is Athens.", languages) == "en"
    assert written_language("La capital de Grecia es Atenas.", languages) == "es"
    assert written_language("これはペンです", ["en", "zh"]) == ""


def test_kana_is_japanese_and_not_chinese() -> None:
    assert not off_target("これはペンです", JA)
    assert off_target("これはペンです", ZH)


@pytest.mark.parametrize("text", ["", "  ", "123", "?!"])
def test_an_answer_without_letters_is_in_no_language(text: str) -> None:
    assert off_target(text, EN)
    assert written_language(text, ["en", "zh"]) == ""
