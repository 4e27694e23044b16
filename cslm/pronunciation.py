"""What a speech recogniser can hear of a text: labels, each with the character it comes from.

A label is a sound, because letters cannot be heard one by one: the `o` of "one", "two" and "on" are three
sounds. Mandarin becomes initials and finals with tone (法 -> f-, a3); other languages become phones by
espeak-ng (what -> w ʌ t), or their lower-case letters where espeak-ng lacks the language.
Punctuation, spaces, digits and symbols have no label.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pypinyin import Style, lazy_pinyin

if TYPE_CHECKING:
    from phonemizer.backend import EspeakBackend

ESPEAK_VOICES = {"en": "en-us", "fr": "fr-fr", "zh": "en-us"}
"""espeak-ng's names where they are not the language code; Latin words in Mandarin are read as English."""
PHONE = re.compile("aɪ|aʊ|eɪ|oʊ|ɔɪ|tʃ|dʒ|.")
VOWELS = frozenset("aeiouyɑɐæɒəɚɛɜɝɪɨɔøœʊʉʌʏ")
STAY, SKEW, SILENT = 1.0, 0.2, 9.0


@dataclass(frozen=True)
class Label:
    """One sound, and the index in the text of the character that makes it."""

    name: str
    character: int


def labels(text: str, language: str) -> list[Label]:
    """Labels of `text` in order; their characters never decrease. `language`: a code such as `en`."""
    out: list[Label] = []
    pinyin = iter(_syllables("".join(c for c in text if is_han(c))))
    for han, group in _runs(text):
        if han:
            out.extend(Label(part, index) for index in group for part in next(pinyin))
        else:
            word = "".join(text[index].lower()[0] for index in group)  # two code points for a Turkish capital i
            out.extend(Label(name, group[at]) for name, at in _sounds(word, language))
    return out


def is_han(character: str) -> bool:
    """True for a Chinese character of the unified block."""
    return "\u4e00" <= character <= "\u9fff"


def _runs(text: str) -> list[tuple[bool, list[int]]]:
    """Indices of the characters that speak, in words and runs of Chinese; true for the latter."""
    runs: list[tuple[bool, list[int]]] = []
    for index, character in enumerate(text):
        han = is_han(character)
        if not han and unicodedata.category(character)[0] not in "LM" and character != "'":
            continue
        if runs and runs[-1][0] == han and runs[-1][1][-1] == index - 1:
            runs[-1][1].append(index)
        else:
            runs.append((han, [index]))
    return runs


@functools.lru_cache(maxsize=65_536)
def _syllables(text: str) -> tuple[tuple[str, ...], ...]:
    initials = lazy_pinyin(text, style=Style.INITIALS, strict=False)
    finals = lazy_pinyin(text, style=Style.FINALS_TONE3, strict=False, neutral_tone_with_five=True)
    marked = (f"{initial}-" if initial else "" for initial in initials)
    return tuple(tuple(filter(None, pair)) for pair in zip(marked, finals, strict=True))


@functools.lru_cache(maxsize=65_536)
def _sounds(word: str, language: str) -> tuple[tuple[str, int], ...]:
    """Sounds of a lower-case word, each with the index of its letter."""
    espeak = _espeak(ESPEAK_VOICES.get(language, language))
    spoken = "".join(espeak.phonemize([word], strip=True)) if espeak else ""
    phones = PHONE.findall("".join(c for c in spoken if unicodedata.category(c) in ("Ll", "Lo")))
    return tuple(zip(phones, spell(phones, word), strict=True)) or tuple(
        (character, letter) for letter, character in enumerate(word) if character != "'"
    )


def spell(phones: Sequence[str], word: str) -> list[int]:
    """Which letter makes each phone: a path that never goes back, by dynamic programming.

    A letter that is its own phone costs nothing, a vowel for a vowel little, a vowel for a consonant most; a
    second phone of the same letter (the `x` of "six") costs too. Close calls go to the letter at the same part
    of the word.
    """
    if not phones:
        return []
    best = [_mismatch(phones, word, 0, letter) for letter in range(len(word))]
    back: list[list[int]] = []
    for phone in range(1, len(phones)):
        costs, origins = [], []
        for letter in range(len(word)):
            before = {letter: best[letter] + STAY}
            before |= {earlier: best[earlier] for earlier in range(letter)}
            origin = min(before, key=lambda earlier: (before[earlier], -earlier))
            costs.append(before[origin] + _mismatch(phones, word, phone, letter))
            origins.append(origin)
        best = costs
        back.append(origins)
    path = [min(range(len(word)), key=best.__getitem__)]
    for origins in reversed(back):
        path.append(origins[path[-1]])
    return path[::-1]


def _mismatch(phones: Sequence[str], word: str, phone: int, letter: int) -> float:
    sound, character = phones[phone], word[letter]
    skew = SKEW * abs((phone + 0.5) / len(phones) - (letter + 0.5) / len(word))
    if character == sound[0]:
        return skew
    if character == "'":
        return skew + SILENT
    return skew + (0.5 if (sound[0] in VOWELS) == (character in VOWELS) else 1.5)


@functools.cache
def _espeak(voice: str) -> EspeakBackend | None:
    """espeak-ng with that voice, or None if it has none."""
    import espeakng_loader
    from phonemizer.backend import EspeakBackend
    from phonemizer.backend.espeak.wrapper import EspeakWrapper

    EspeakWrapper.set_library(espeakng_loader.get_library_path())
    EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
    if not EspeakBackend.is_supported_language(voice):
        return None
    return EspeakBackend(voice, language_switch="remove-flags")
