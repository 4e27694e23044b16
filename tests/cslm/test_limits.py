"""What the models that ship take as a question."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cslm.audio import SAMPLE_RATE, Samples, decode
from cslm.conversation import Assistant, Heard, Refused
from tests.recordings import held_out_questions

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    return Assistant.load(MODELS / "cslm", MODELS / "tokenizer", MODELS / "decoder")


def questions(seconds: float) -> Samples:
    """English questions, one after the other, of so many seconds."""
    rows = [row for row in held_out_questions() if row["language"] == "en"]
    return np.concatenate([decode(row["audio"]) for row in rows[:20]])[: int(seconds * SAMPLE_RATE)]


def test_a_question_longer_than_what_the_model_learnt_is_refused_with_what_is_allowed(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = questions(20)
    for language, words in (("en", "at most 9 seconds"), ("zh", "在9秒之内"), (None, "at most 9 seconds")):
        [refusal] = assistant.answer(long, language)
        assert isinstance(refusal, Refused)
        assert words in refusal.text
        assert list(assistant.answer(np.tile(long, 2), language)) == [refusal], "more than any model takes"
    assert isinstance(next(iter(assistant.answer(questions(9), "en"))), Heard), "who keeps to it is heard"
    monkeypatch.setattr(assistant.model.model.generation_config, "max_length", 2048)
    assert isinstance(next(iter(assistant.answer(long, "en"))), Heard), "a checkpoint says what it has learnt"
