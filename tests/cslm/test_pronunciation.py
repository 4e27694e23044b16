"""Labels are what can be heard, each at its character."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cslm.pronunciation import labels


def test_mandarin_becomes_initials_and_finals_with_tone() -> None:
    assert [(label.name, label.character) for label in labels("法国，好！", "zh")] == [
        ("f-", 0),
        ("a3", 0),
        ("g-", 1),
        ("uo2", 1),
        ("h-", 3),
        ("ao3", 3),
    ]


def test_english_becomes_phones_as_in_a_dictionary() -> None:
    # Merriam-Webster: ˈ(h)wäts, ˈəp, ˈthȯt, ˈsiks, ˈchāf, in IPA
    for word, phones in {
        "What's": "w ʌ t s",
        "up": "ʌ p",
        "thought": "θ ɔ t",
        "six": "s ɪ k s",
        "chafe": "tʃ eɪ f",
    }.items():
        assert [label.name for label in labels(f"{word}, 7!", "en")] == phones.split()


def test_letters_make_the_phones_that_they_spell() -> None:
    spelling = {"knight": "nit", "six": "sixx", "chocolate": "coclat", "capital": "capital"}
    for word, letters in spelling.items():
        assert "".join(word[label.character] for label in labels(word, "en")) == letters


def test_a_language_without_voice_has_letters() -> None:
    assert "".join(label.name for label in labels("What's up, Bob 7?", "zz")) == "whatsupbob"


@given(st.text("aBİ é'7,. 法国的，?\n", max_size=40), st.sampled_from(["en", "zh", "es", "zz"]))
def test_characters_never_decrease_and_speak(text: str, language: str) -> None:
    characters = [label.character for label in labels(text, language)]
    assert characters == sorted(characters)
    assert all(text[index].isalpha() or text[index] == "'" for index in characters)
