"""Is an answer right, nearly right, and in the language that was asked for?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cslm.evaluation.normalization import LanguageRules
from cslm.languages import language_of
from cslm.validation.text import script_tokens

MIN_TARGET_SHARE = 0.5


def exact_match(reference: str, answer: str, rules: LanguageRules) -> bool:
    """Equal after normalization: case, punctuation, blanks and the way numbers are written do not count."""
    expected, given = rules.tokens(reference, answer)
    return "".join(expected) == "".join(given)


def token_f1(reference: str, answer: str, rules: LanguageRules) -> float:
    """Harmonic mean of precision and recall over bags of words or characters (Rajpurkar et al. 2016)."""
    expected, given = map(Counter, rules.tokens(reference, answer))
    if not expected or not given:
        return float(expected == given)
    return 2 * (expected & given).total() / (expected.total() + given.total())


def written_language(answer: str, languages: Sequence[str]) -> str:
    """Which of `languages` an answer is in; empty if it is in the script of none of them, or has no letters."""
    return (language_of(answer, languages) or "") if script_tokens(answer) else ""


def off_target(answer: str, rules: LanguageRules, languages: Sequence[str] = ()) -> bool:
    """True unless at least half of the words are in a script of the language, and in no other of `languages`.

    A Chinese character counts as a word, so that a name in Latin letters does not turn a Chinese answer
    into English. An answer without letters is off target: it is in no language.
    """
    words = script_tokens(answer)
    if not words or sum(word in rules.scripts for word in words) < MIN_TARGET_SHARE * len(words):
        return True
    return language_of(answer, [rules.language, *languages]) not in (rules.language, None)
