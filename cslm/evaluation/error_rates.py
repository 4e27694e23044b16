"""Word and character error rates: edit distance to the reference over the reference's length."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import jiwer

from cslm.evaluation.normalization import LanguageRules


@dataclass(frozen=True)
class Errors:
    """Edits that turn a reference of `length` words (or characters) into the hypothesis."""

    substitutions: int
    deletions: int
    insertions: int
    length: int

    @property
    def total(self) -> int:
        """All edits."""
        return self.substitutions + self.deletions + self.insertions

    def __add__(self, other: Errors) -> Errors:
        return Errors(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.length + other.length,
        )


NO_ERRORS = Errors(0, 0, 0, 0)


def count_errors(reference: str, hypothesis: str, rules: LanguageRules) -> Errors:
    """Edits of one utterance, in words or characters as the language's rules say, after normalization."""
    expected, heard = rules.tokens(reference, hypothesis)
    if not expected:  # jiwer refuses references without words
        return Errors(0, 0, len(heard), 0)
    edits = jiwer.process_words(" ".join(expected), " ".join(heard))
    return Errors(edits.substitutions, edits.deletions, edits.insertions, len(expected))


def error_rate(errors: Iterable[Errors]) -> float:
    """All edits over all reference words: the rate of a corpus, not the mean of its utterances' rates.

    Raises:
        ValueError: no reference has any word.
    """
    total = sum(errors, NO_ERRORS)
    if not total.length:
        raise ValueError("an error rate needs at least one word in the references")
    return total.total / total.length
