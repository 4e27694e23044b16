"""Error rates against values counted by hand, and against a textbook edit distance."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cslm.evaluation.error_rates import Errors, count_errors, error_rate
from cslm.evaluation.normalization import rules_for

EN, ZH = rules_for("en"), rules_for("zh")
WORDS = st.lists(st.sampled_from(["cat", "dog", "sun", "moon", "tree", "fish", "bird"]), max_size=8)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("the cat sat on the mat", "the cat sat on mat", Errors(0, 1, 0, 6)),
        ("the cat sat", "the big cat sat down", Errors(0, 0, 2, 3)),
        ("the cat sat", "the dog sat", Errors(1, 0, 0, 3)),
        ("the cat", "", Errors(0, 2, 0, 2)),
        ("...", "the cat", Errors(0, 0, 2, 0)),
    ],
)
def test_word_errors_counted_by_hand(reference: str, hypothesis: str, expected: Errors) -> None:
    assert count_errors(reference, hypothesis, EN) == expected


def test_chinese_errors_are_counted_by_character() -> None:
    assert count_errors("今天天气很好。", "今天天汽好", ZH) == Errors(1, 1, 0, 6)


def test_the_rate_of_a_corpus_weighs_long_references_more() -> None:
    one_of_two = count_errors("big cat", "big dog", EN)
    none_of_eight = count_errors("a b c d e f g h", "a b c d e f g h", EN)
    assert error_rate([one_of_two, none_of_eight]) == pytest.approx(0.1)


def test_a_rate_needs_references() -> None:
    with pytest.raises(ValueError, match="at least one word"):
        error_rate([count_errors("", "noise", EN)])


@given(st.text(alphabet="今天气很好 hello, 12", min_size=1))
def test_a_perfect_transcript_has_no_error(text: str) -> None:
    for rules in (EN, ZH):
        assert count_errors(text, text, rules).total == 0


@given(WORDS, WORDS)
def test_errors_are_the_edit_distance(reference: list[str], hypothesis: list[str]) -> None:
    errors = count_errors(" ".join(reference), " ".join(hypothesis), EN)
    assert errors.total == _edit_distance(reference, hypothesis)
    assert errors.length == len(reference)
    assert errors.length - errors.deletions + errors.insertions == len(hypothesis)


def _edit_distance(one: list[str], other: list[str]) -> int:
    """Wagner and Fischer (1974), one row at a time."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        above, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            above, row[j] = row[j], min(above + (a != b), row[j] + 1, row[j - 1] + 1)
    return row[-1]
