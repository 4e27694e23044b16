"""Which of some languages a text is in."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from cslm.validation.text import script_share

MIN_SHARE = 0.5


def language_of(text: str, languages: Sequence[str]) -> str | None:
    """Which of these languages `text` is in; None if less than half of its words are in the script of any.

    Languages that share a script are told apart by py3langid (Lui and Baldwin 2012, "langid.py"), as far as it
    knows them: of others, and for a text without letters, the first is taken.
    """
    possible = [code for code in dict.fromkeys(languages) if script_share(text, code) >= MIN_SHARE]
    if len(possible) < 2 or not any(map(str.isalpha, text)):
        return possible[0] if possible else None
    known = tuple(sorted(set(possible) & _languages_of_identifier()))
    return str(_identifier(known).classify(text)[0]) if len(known) > 1 else possible[0]


@functools.cache
def _languages_of_identifier() -> frozenset[str]:
    return frozenset(LanguageIdentifier.from_model_file(MODEL_FILE).labels)


@functools.cache
def _identifier(languages: tuple[str, ...]) -> LanguageIdentifier:
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages(list(languages))
    return identifier
