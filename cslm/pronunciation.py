"""What a speech recogniser can hear of a text: labels, each with the character it comes from.

Mandarin becomes initials and finals with tone (法 -> f-, a3): an hour of speech holds each of them hundreds
of times, but most characters only once or twice. Other scripts become their lower-case letters.
Punctuation, spaces, digits and symbols have no label.
"""

from __future__ import annotations

import functools
import unicodedata
from dataclasses import dataclass

from pypinyin import Style, lazy_pinyin


@dataclass(frozen=True)
class Label:
    """One sound, and the index in the text of the character that makes it."""

    name: str
    character: int


def labels(text: str) -> list[Label]:
    """Labels of `text` in order; their characters never decrease."""
    out: list[Label] = []
    pinyin = iter(_syllables("".join(c for c in text if is_han(c))))
    for index, character in enumerate(text):
        if is_han(character):
            out.extend(Label(part, index) for part in next(pinyin))
        elif unicodedata.category(character)[0] in "LM" or character == "'":
            out.extend(Label(c, index) for c in character.lower())
    return out


def is_han(character: str) -> bool:
    """True for a Chinese character of the unified block."""
    return "\u4e00" <= character <= "\u9fff"


@functools.lru_cache(maxsize=65_536)
def _syllables(text: str) -> tuple[tuple[str, ...], ...]:
    initials = lazy_pinyin(text, style=Style.INITIALS, strict=False)
    finals = lazy_pinyin(text, style=Style.FINALS_TONE3, strict=False, neutral_tone_with_five=True)
    marked = (f"{initial}-" if initial else "" for initial in initials)
    return tuple(tuple(filter(None, pair)) for pair in zip(marked, finals, strict=True))
