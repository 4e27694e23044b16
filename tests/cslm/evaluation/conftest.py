"""A tiny random model with speech tokens, and a few held-out items."""

from __future__ import annotations

import pytest

from cslm.evaluation.held_out import Dialogue, Translation, Utterance
from cslm.generation import SpeechLanguageModel
from cslm.text_model import random_llama, train_text_tokenizer
from cslm.vocabulary import extend

UNITS = 12


@pytest.fixture(scope="session")
def model() -> SpeechLanguageModel:
    tokenizer = train_text_tokenizer(["What is the capital of France?", "法国的首都是哪里？"], 300)
    llama = random_llama(tokenizer, hidden=32, layers=1, heads=2, seed=1)
    extend(llama, tokenizer, units=UNITS, seed=1)
    return SpeechLanguageModel(llama, tokenizer)


@pytest.fixture
def utterances() -> list[Utterance]:
    return [
        Utterance("q0-en", "en", "What is the capital of France?", (1, 2, 3, 4)),
        Utterance("q1-en", "en", "Is it far?", (5, 6)),
        Utterance("q0-zh", "zh", "法国的首都是哪里？", (7, 8, 9)),
    ]


@pytest.fixture
def dialogues() -> list[Dialogue]:
    return [
        Dialogue("c-0-en", "en", "What is the capital of France?", "q0-en", (1, 2, 3, 4), "en", "It is Paris."),
        Dialogue("c-1-en", "en", "Is it far?", "q1-en", (5, 6), "zh", "不远。"),
        Dialogue("c-0-zh", "zh", "法国的首都是哪里？", "q0-zh", (7, 8, 9), "zh", "是巴黎。"),
    ]


@pytest.fixture
def translations() -> list[Translation]:
    return [Translation("t0", "en", "Is it far from here to there?", "zh", "从这里到那里远吗？")]
