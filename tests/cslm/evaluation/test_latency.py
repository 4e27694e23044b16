"""Tokens and seconds to the first speech, with a model and a clock that the test holds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from cslm.evaluation.held_out import Dialogue
from cslm.evaluation.latency import compare_chains, first_speech
from cslm.generation import SpeechLanguageModel
from cslm.sequences import Chunk

CHUNKS = [Chunk("It is ", (1, 2)), Chunk("Paris, as all know.", (3, 4, 5))]


class Fluent:
    """Says the same two chunks in the chain that the prompt asks for; every token takes a second."""

    def __init__(self, model: SpeechLanguageModel, question: Dialogue, speaks: bool = True) -> None:
        self.builder = model.builder
        self.now = 0.0
        self.replies: dict[tuple[int, ...], list[int]] = {}
        for chain in ("interleaved", "full"):
            prompt = self.builder.prompt_dialogue(list(question.question_units), "en", "en", chain)
            whole = self.builder.dialogue(list(question.question_units), "Where?", CHUNKS, "en", "en", chain)
            reply = whole.input_ids[len(prompt) :]
            self.replies[tuple(prompt)] = reply if speaks else self.builder.text_ids("nothing to say")

    def stream(self, prompt: list[int], reply: str, max_new_tokens: int) -> Iterator[int]:
        for token in itertools.islice(self.replies[tuple(prompt)], max_new_tokens):
            self.now += 1.0
            yield token

    def clock(self) -> float:
        return self.now


def test_the_first_unit_and_the_first_chunk(model: SpeechLanguageModel, dialogues: list[Dialogue]) -> None:
    fluent = Fluent(model, dialogues[0])
    prompt = model.builder.prompt_dialogue(list(dialogues[0].question_units), "en", "en", "interleaved")
    found = first_speech(fluent, prompt, 1000, fluent.clock)  # type: ignore[arg-type]
    # [question] Where? [answer] It is <sosp> 1 2 <eosp>
    before = 1 + len(model.builder.text_ids("Where?")) + 1 + len(model.builder.text_ids("It is ")) + 1
    assert found is not None
    assert (found.tokens, found.seconds) == (before + 1, before + 1.0)
    assert (found.chunk_tokens, found.chunk_seconds) == (before + 3, before + 3.0)


def test_the_full_chain_is_later_by_the_rest_of_the_text(
    model: SpeechLanguageModel, dialogues: list[Dialogue]
) -> None:
    fluent = Fluent(model, dialogues[0])
    metrics = compare_chains(fluent, dialogues[:1] * 3, 1000, clock=fluent.clock).metrics()  # type: ignore[arg-type]
    early, late = metrics["interleaved"], metrics["full_chain"]
    assert isinstance(early, dict)
    assert isinstance(late, dict)
    assert late["tokens"] - early["tokens"] == pytest.approx(
        len(model.builder.text_ids("It is Paris, as all know.")) - len(model.builder.text_ids("It is "))
    )
    assert metrics["speedup_over_full_chain"] == pytest.approx(late["seconds"] / early["seconds"])
    assert metrics["token_speedup"] == metrics["speedup_over_full_chain"]
    assert (metrics["n"], metrics["silent"]) == (3, 0)


def test_silent_answers_are_counted_and_left_out(model: SpeechLanguageModel, dialogues: list[Dialogue]) -> None:
    fluent = Fluent(model, dialogues[0], speaks=False)
    done: list[int] = []
    comparison = compare_chains(fluent, dialogues[:1], 1000, done.append, fluent.clock)  # type: ignore[arg-type]
    assert comparison.metrics() == {"n": 0, "silent": 1}
    assert done == [1]


def test_the_real_model_can_be_timed(model: SpeechLanguageModel, dialogues: list[Dialogue]) -> None:
    comparison = compare_chains(model, dialogues[:1], 8)
    assert comparison.silent + len(comparison.full) == 1
