"""BLEU at its ends, and in languages without spaces."""

from __future__ import annotations

import pytest

from cslm.evaluation.normalization import rules_for
from cslm.evaluation.translation import bleu


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "The weather is fine today, so we walk."),
        ("zh", "今天天气很好，所以我们走路。"),
        ("ja", "今日は天気がいいです。"),
    ],
)
def test_a_perfect_translation_scores_100(language: str, text: str) -> None:
    assert bleu([text], [text], rules_for(language)) == pytest.approx(100)
    assert bleu(["???"], [text], rules_for(language)) < 20


def test_bleu_of_papineni_by_hand() -> None:
    """5 words of 5; n-gram precisions 4/5, 3/4, 2/3, 1/2; no brevity penalty: (1/5) ** (1/4)."""
    score = bleu(["we walk to the garden"], ["we walk to the park"], rules_for("en"))
    assert score == pytest.approx(100 * 0.2**0.25)


def test_pairs_are_needed() -> None:
    with pytest.raises(ValueError, match="pairs"):
        bleu([], [], rules_for("en"))
