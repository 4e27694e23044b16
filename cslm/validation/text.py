"""Statistics of one text: how much there is to say, in which script, and what no text should hold."""

from __future__ import annotations

import hashlib
import unicodedata
from functools import lru_cache

LATIN_LANGUAGES = "en de fr es it pt nl pl cs sv da fi no hu ro tr vi id ca hr sk sl et lv lt"
SCRIPTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(LATIN_LANGUAGES.split(), ("LATIN",)),
    "zh": ("CJK", "BOPOMOFO"),
    "yue": ("CJK",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"),
    "ko": ("HANGUL", "CJK"),
    "ru": ("CYRILLIC",),
    "uk": ("CYRILLIC",),
    "bg": ("CYRILLIC",),
    "el": ("GREEK",),
    "ar": ("ARABIC",),
    "fa": ("ARABIC",),
    "ur": ("ARABIC",),
    "he": ("HEBREW",),
    "hi": ("DEVANAGARI",),
    "th": ("THAI",),
}
"""Scripts of each language: the first word of the letters' Unicode names."""
UNSPACED = frozenset({"CJK", "BOPOMOFO", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "THAI"})
"""Scripts without spaces between words."""
LEAST_WORDS, LEAST_LETTERS = 4, 6
"""What a text says at least that two utterances do not have in common by chance, as people say "yeah" and "嗯"
all the time. Letters count in scripts without spaces, where short questions (鸭子有几条腿) have six."""
JOINERS = "\u200c\u200d"
"""Zero-width (non-)joiners are part of spelling in Persian and Hindi."""
LAYOUT = "\n\t"
"""Line ends and tabs: writing has them, nobody speaks them."""


def characters(text: str) -> int:
    """Letters and digits of a text: what is spoken, without blanks and punctuation."""
    return sum(map(str.isalnum, text))


def script_share(text: str, language: str) -> float:
    """Share of a text that is in the language's script; 1 without letters, or if no script is known for it.

    A word of an alphabet counts as one, like a Chinese character: "我用 iPhone 手机" is four fifths Chinese.
    """
    scripts, words = SCRIPTS.get(language), script_tokens(text)
    if scripts is None or not words:
        return 1.0
    return sum(script in scripts for script in words) / len(words)


def script_tokens(text: str) -> list[str]:
    """Script of each word: a letter of an unspaced script is a word, as is a run of letters of any other."""
    tokens: list[str] = []
    previous = ""
    for character in unicodedata.normalize("NFKC", text):
        script = _script(character)
        if script in UNSPACED or script != previous:
            tokens.append(script)
        previous = script
    return [script for script in tokens if script]


@lru_cache(maxsize=65_536)
def _script(character: str) -> str:
    return unicodedata.name(character, "").split(" ")[0] if character.isalpha() else ""


def control_characters(text: str, spoken: bool = True) -> str:
    """The control, format, private and unassigned characters of a text as `U+0007 U+FEFF`; mostly empty.

    A text that is not spoken may have line ends and tabs.
    """
    known = JOINERS if spoken else JOINERS + LAYOUT
    wrong = {c for c in text if (unicodedata.category(c)[0] == "C" and c not in known) or c == "\ufffd"}
    return " ".join(f"U+{ord(c):04X}" for c in sorted(wrong))


def says_little(text: str) -> bool:
    """Whether many people say just this (`LEAST_WORDS`, `LEAST_LETTERS`)."""
    if letters := sum(_script(character) in UNSPACED for character in text):
        return letters < LEAST_LETTERS
    return sum(any(map(str.isalnum, word)) for word in text.split()) < LEAST_WORDS


def text_key(text: str, language: str) -> int:
    """64-bit key that is equal for texts that sound alike: case, width, blanks and punctuation do not count."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    spoken = language + ":" + "".join(filter(str.isalnum, folded))
    return int.from_bytes(hashlib.blake2b(spoken.encode(), digest_size=8).digest(), "big", signed=True)
