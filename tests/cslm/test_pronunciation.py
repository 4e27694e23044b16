"""Labels are what can be heard, each at its character."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cslm.pronunciation import labels


def test_mandarin_becomes_initials_and_finals_with_tone() -> None:
    assert [(label.name, label.character) for label in labels("法国，好！")] == [
        ("f-", 0),
        ("a3", 0),
        ("g-", 1),
        ("uo2", 1),
        ("h-", 3),
        ("ao3", 3),
    ]


def test_english_becomes_letters() -> None:
    assert "".join(label.name for label in labels("What's up, Bob 7?")) == "what'supbob"


@given(st.text(st.sampled_from("aB é'7,. 法国的，?\n"), max_size=40))
def test_characters_never_decrease_and_speak(text: str) -> None:
    characters = [label.character for label in labels(text)]
    assert characters == sorted(characters)
    assert all(text[index].isalpha() or text[index] == "'" for index in characters)
