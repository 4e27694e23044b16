"""What counts as the same text: per language, the writing, the normalizer and the unit of error.

Any language works: one that has no entry here is scored by words, or by characters if it is written in
Han or Kana, after Unicode folding, lower case and removal of punctuation. English goes through Whisper's
normalizer (Radford et al. 2022, appendix C), numbers included only if one of the texts has digits; Chinese
to simplified characters (OpenCC) with digits spelled out (cn2an), as a transcript may write 十二 or 12.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from cn2an import an2cn
from opencc import OpenCC
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from cslm.validation.text import SCRIPTS, UNSPACED, script_tokens

MIN_SHARE = 0.2
"""Share of the reference tokens from which a script counts as one of an unknown language."""
NUMBER = re.compile(r"(?<![A-Za-z\d.])(\d+(?:\.\d+)?)(%?)(年?)", re.ASCII)
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
MAX_DIGITS = 16
"""cn2an names numbers up to here; longer ones are read digit by digit."""


@dataclass(frozen=True)
class LanguageRules:
    """How texts of one language are compared."""

    language: str
    scripts: frozenset[str]
    """Scripts it is written in: first words of Unicode letter names (`LATIN`, `CJK`, ...)."""
    by_character: bool
    """Errors and F1 count characters (CER) instead of words (WER)."""
    normalize: Callable[[str], str]
    normalize_digits: Callable[[str], str] | None = None
    """Used instead if either text has digits: makes numbers equal however they are written."""

    @property
    def metric(self) -> str:
        """Name of its error rate: `cer` or `wer`."""
        return "cer" if self.by_character else "wer"

    @property
    def unit(self) -> str:
        """What the error rate counts: `characters` or `words`."""
        return "characters" if self.by_character else "words"

    def tokens(self, reference: str, other: str) -> tuple[list[str], list[str]]:
        """Normalized words, or characters without blanks, of two texts that are to be compared."""
        digits = self.normalize_digits and any(map(str.isdigit, reference + other))
        normalize = self.normalize_digits if digits and self.normalize_digits else self.normalize
        words = _words(normalize(reference)), _words(normalize(other))
        return (list("".join(words[0])), list("".join(words[1]))) if self.by_character else words


def rules_for(language: str, references: Iterable[str] = ()) -> LanguageRules:
    """The rules of a language; the scripts of one that is not known are those of its `references`."""
    scripts = frozenset(SCRIPTS.get(language, ())) or _scripts_of(references)
    by_character = scripts <= UNSPACED  # Korean has Han letters too, and spaces
    default = _plain_characters if by_character else BasicTextNormalizer(preserve_marks=True)
    normalize = NORMALIZERS.get(language, default)
    return LanguageRules(language, scripts, by_character, normalize, DIGIT_NORMALIZERS.get(language))


def _words(text: str) -> list[str]:
    """Words with a letter or digit; Whisper's normalizer leaves a lone `..` or `%`."""
    return [word for word in text.split() if any(map(str.isalnum, word))]


def _scripts_of(texts: Iterable[str]) -> frozenset[str]:
    counts = Counter(script for text in texts for script in script_tokens(text))
    common = frozenset(script for script, count in counts.items() if count >= MIN_SHARE * counts.total())
    return common or frozenset({"LATIN"})


def _chinese(text: str) -> str:
    text = THOUSANDS.sub("", text)  # before the Chinese comma, which parts clauses, becomes the same sign
    text = _simplifier().convert(unicodedata.normalize("NFKC", text)).replace("〇", "零")
    return _letters(NUMBER.sub(_spell_out, text))


def _plain_characters(text: str) -> str:
    return _letters(unicodedata.normalize("NFKC", text))


def _letters(text: str) -> str:
    """Lower-case letters, marks and digits; everything else parts words."""
    kept = (c if unicodedata.category(c)[0] in "LMN" else " " for c in text.lower())
    return " ".join("".join(kept).split())


def _spell_out(match: re.Match[str]) -> str:
    """`12` -> 十二, `50%` -> 百分之五十, `2026年` and `007` digit by digit."""
    digits, percent, year = match.groups()
    whole = digits.split(".")[0]
    plain = (year and len(whole) == 4) or len(whole) > MAX_DIGITS or (len(whole) > 1 and whole[0] == "0")
    return ("百分之" if percent else "") + str(an2cn(digits, "direct" if plain else "low")) + year


@lru_cache(maxsize=1)
def _simplifier() -> OpenCC:
    return OpenCC("t2s")


def _english(text: str) -> str:
    """Whisper's normalizer but for numbers: it makes `nine plus three` two words (`9 +3`), `o'clock` a zero."""
    return _letters(_whisper_without_numbers()(text))


@lru_cache(maxsize=1)
def _whisper_without_numbers() -> EnglishTextNormalizer:
    normalizer = EnglishTextNormalizer()
    normalizer.standardize_numbers = str.strip
    return normalizer


NORMALIZERS: dict[str, Callable[[str], str]] = {
    "en": _english,
    "zh": _chinese,
    "yue": _chinese,
}
"""Languages with a normalizer of their own."""
DIGIT_NORMALIZERS: dict[str, Callable[[str], str]] = {"en": EnglishTextNormalizer()}
