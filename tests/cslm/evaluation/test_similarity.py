"""Similarity of vectors whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cslm.evaluation.similarity import compare


@given(st.integers(2, 12), st.integers(2, 8), st.integers(0, 100))
def test_identical_vectors_are_wholly_similar(n: int, size: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(n, size))
    found = compare(vectors, vectors, [str(i) for i in range(n)])
    assert found.similarity == pytest.approx(1)
    assert found.centered == pytest.approx(1)
    assert found.retrieval_accuracy == 1


def test_by_hand() -> None:
    speech = np.array([[1.0, 0.0], [0.0, 2.0]])
    text = np.array([[3.0, 4.0], [0.0, 1.0]])
    found = compare(speech, text, ["a", "b"])
    assert found.similarity == pytest.approx((0.6 + 1.0) / 2)
    assert found.mismatched == pytest.approx((0.0 + 0.8) / 2)
    assert found.speech_to_text == 1.0
    assert found.text_to_speech == 0.5  # (3, 4) lies nearer to (0, 2) than to (1, 0)
    assert found.n == 2


def test_a_shared_direction_lifts_the_cosine_but_not_the_centered_one() -> None:
    rng = np.random.default_rng(1)
    speech, text = rng.normal(size=(2, 200, 16)) + 20
    found = compare(speech, text, [str(i) for i in range(200)])
    assert found.similarity > 0.99
    assert found.mismatched == pytest.approx(found.similarity, abs=0.01)
    assert abs(found.centered) < 0.1
    assert found.retrieval_accuracy < 0.05


def test_finding_the_same_sentence_of_another_speaker_is_right() -> None:
    speech = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    assert compare(speech, speech[[1, 0, 2]], ["hello", "hello", "bye"]).retrieval_accuracy == 1


def test_a_single_pair_has_nothing_to_be_mistaken_for() -> None:
    assert compare(np.ones((1, 2)), np.ones((1, 2)), ["a"]).mismatched is None


def test_pairs_must_be_pairs() -> None:
    with pytest.raises(ValueError, match="equally many"):
        compare(np.ones((2, 2)), np.ones((1, 2)), ["a", "b"])
