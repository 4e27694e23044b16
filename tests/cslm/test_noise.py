"""Disturbed questions keep their words in order, and are hardly ever twice the same."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cslm.noise import OPENING, disturb
from cslm.sequences import ChatBuilder, Sequence
from cslm.tables import DIALOGUE, TRANSLATION
from cslm.written import WrittenTasks

WORDS = st.lists(st.integers(0, 99), min_size=1, max_size=12)
QUESTION, ANSWER = "What is the capital of France?", "It is Paris"


@given(WORDS, st.lists(st.integers(100, 199), max_size=6), st.floats(0, 0.5), st.integers())
def test_an_opening_then_some_of_the_words_in_their_order(
    words: list[int], opening: list[int], share: float, seed: int
) -> None:
    out = disturb(words, opening, share, random.Random(seed))
    before = [word for word in out if word >= 100]
    kept = out[len(before) :]
    assert before == opening[: len(before)] and len(before) <= OPENING
    remaining = iter(words)
    assert kept and all(word in remaining for word in kept), "not a subsequence"


@given(WORDS, st.integers())
def test_without_noise_nothing_changes(words: list[int], seed: int) -> None:
    assert disturb(words, [100], 0.0, random.Random(seed)) == words


@pytest.fixture
def tasks(tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], tmp_path: Path) -> WrittenTasks:
    held = ("2", "test", "en", "Secret?", "", "en", "Yes", "")
    return written(tmp_path, tiny[1], 0.2, ("1", "train", "en", QUESTION, "", "en", ANSWER, ""), held)


def written(
    folder: Path, tokenizer: PreTrainedTokenizerFast, noise: float, *dialogues: tuple[str, ...]
) -> WrittenTasks:
    """The tasks of these dialogues."""
    rows = [dict(zip(DIALOGUE.names, row, strict=True)) for row in dialogues]
    pq.write_table(pa.Table.from_pylist(rows, DIALOGUE), folder / "dialogues.parquet")
    pq.write_table(pa.Table.from_pylist([], TRANSLATION), folder / "translations.parquet")
    return WrittenTasks(ChatBuilder(tokenizer), folder, noise, seed=1)


def read(sequence: Sequence, tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    """What is asked and what is to be learned."""
    reply = [token for token in sequence.labels if token >= 0]
    prompt = sequence.input_ids[: len(sequence.input_ids) - len(reply)]
    return (str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in (prompt, reply))  # type: ignore[return-value]


def test_instructions_vary_and_answers_do_not(
    tasks: WrittenTasks, tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast]
) -> None:
    pairs = [read(sequence, tiny[1]) for sequence in tasks.instructions(50.0)]
    questions, answers = zip(*pairs, strict=True)
    assert set(answers) == {ANSWER}
    assert len(set(questions)) > 20
    assert all(
        set(question.removeprefix("user").removesuffix("assistant").split()) <= set(QUESTION.split())
        for question in questions
    )


def test_repetitions_are_copies_of_training_words(
    tasks: WrittenTasks, tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast]
) -> None:
    for sequence in tasks.repetitions(20.0):
        asked, reply = read(sequence, tiny[1])
        assert asked.removesuffix("assistant").endswith(reply)
        assert set(reply.split()) <= set(f"{QUESTION} {ANSWER}".split())


def test_lines_of_a_written_text_stay(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    question, answer = "Which two?\n\n\tfirst:  a\n法国\n", "Two lines:\n\n- one\n\t- two"
    tasks = written(tmp_path, tiny[1], 0.0, ("1", "train", "en", question, "", "en", answer, ""))
    [(asked, reply)] = [read(sequence, tiny[1]) for sequence in tasks.instructions(1.0)]
    assert asked.removeprefix("user").removesuffix("assistant") == question.strip()
    assert reply == answer


def test_a_language_of_single_words_has_nothing_to_repeat(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    single = ("1", "train", "es", "Hola", "", "es", "Hola", "")
    tasks = written(tmp_path, tiny[1], 0.2, single, ("2", "train", "en", QUESTION, "", "en", ANSWER, ""))
    assert [sequence.language for sequence in tasks.repetitions(2.0)] == ["en", "en"]
    assert [sequence.language for sequence in tasks.instructions(1.0)] == ["es", "en"]
