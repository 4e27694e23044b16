"""What counts as the same text, in languages with and without rules of their own."""

from __future__ import annotations

import pytest

from cslm.evaluation.normalization import rules_for
from cslm.validation.text import script_tokens


@pytest.mark.parametrize(
    ("language", "one", "other"),
    [
        ("en", "It's nine o'clock.", "it is nine o'clock"),
        ("en", "Set a timer for twenty minutes!", "set a timer for 20 minutes"),
        ("en", "My favourite colour", "my favorite color"),
        ("zh", "一年有十二个月。", "一年有12个月"),
        ("zh", "臺灣的首都", "台湾的首都"),
        ("zh", "Ａ组，共３人", "a组共三人"),
        ("zh", "价格是一万二千元", "价格是12,000元"),
        ("zh", "百分之五十", "50%"),
        ("zh", "二零二六年", "2026年"),
        ("zh", "二〇二六年", "2026年"),
        ("zh", "他考了九十五，一百分是满分", "他考了95，100分是满分"),
        ("zh", "三点五米", "3.5米"),
        ("de", "Grüße, Straße!", "grüße straße"),
        ("ja", "東京、です。", "東京です"),
        ("hi", "नमस्ते।", "नमस्ते"),
    ],
)
def test_same_text_however_it_is_written(language: str, one: str, other: str) -> None:
    expected, given = rules_for(language, [one]).tokens(one, other)
    assert expected == given


@pytest.mark.parametrize(
    ("language", "one", "other"),
    [
        ("en", "nine plus three", "nine plus four"),
        ("zh", "十二", "十三"),
        ("zh", "三", "٣"),
        ("ja", "国", "國"),
        ("hi", "की", "का"),
    ],
)
def test_other_text_stays_other(language: str, one: str, other: str) -> None:
    expected, given = rules_for(language, [one]).tokens(one, other)
    assert expected != given


def test_english_numbers_in_words_stay_words() -> None:
    expected, _ = rules_for("en").tokens("What is nine plus three?", "what is nine plus three")
    assert expected == ["what", "is", "nine", "plus", "three"]


def test_a_number_too_long_to_name_is_read_by_digits() -> None:
    expected, given = rules_for("zh").tokens("一二三四五六七八九零一二三四五六七八", "123456789012345678")
    assert expected == given


@pytest.mark.parametrize(
    ("language", "reference", "metric"),
    [
        ("en", "", "wer"),
        ("zh", "", "cer"),
        ("ja", "", "cer"),
        ("ko", "", "wer"),
        ("wuu", "侬好", "cer"),
        ("sr", "Добар дан", "wer"),
        ("xx", "", "wer"),
    ],
)
def test_the_script_decides_between_words_and_characters(language: str, reference: str, metric: str) -> None:
    assert rules_for(language, [reference]).metric == metric


def test_an_unknown_language_is_written_as_its_references_are() -> None:
    assert rules_for("sr", ["Добар дан"]).scripts == {"CYRILLIC"}


def test_a_han_character_is_a_word_and_so_is_a_latin_run() -> None:
    assert script_tokens("打开Wi-Fi吧 now") == ["CJK", "CJK", "LATIN", "LATIN", "CJK", "LATIN"]
