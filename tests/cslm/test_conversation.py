"""A tiny random model talks nonsense, in good order; what is no question is refused in words."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import cycle, islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cslm.audio import SAMPLE_RATE, Samples
from cslm.conversation import (
    CUT,
    Assistant,
    Heard,
    History,
    Refused,
    Speech,
    Text,
    UnknownLanguage,
)
from cslm.decoder import DecoderConfig, SpeechDecoder, UnknownVoice
from cslm.decoder.vocoder import SourceFilterVocoder
from cslm.generation import SpeechLanguageModel
from cslm.tokenizer import SpeechTokenizer
from cslm.tokenizer.speech_tokenizer import TokenizerConfig
from tests.recordings import question

SPOKEN = question()


@pytest.fixture(scope="module")
def assistant(tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast]) -> Assistant:
    torch.manual_seed(1)
    tokenizer = SpeechTokenizer(TokenizerConfig(hidden=32, layers=1, levels=[4, 4], labels=["a", "b"]))
    config = DecoderConfig(16, {"ann": "en", "wei": "zh"}, "", 16, 1, 4, 16, 1)
    decoder = SpeechDecoder(config, SourceFilterVocoder(16, 1)).eval()
    return Assistant(SpeechLanguageModel(*tiny), tokenizer, decoder)


QUESTION = "What is the capital of France?"
CHUNKS = [("It is Paris, ", [1, 2, 3, 4] * 10), ("the capital.", [5, 6, 7] * 10)]


@pytest.fixture
def talkative(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> Assistant:
    """An assistant that takes anything for the same question, and answers in two chunks."""
    builder = assistant.model.builder

    def stream(prompt: list[int], reply: str, *_: object) -> Iterator[int]:
        if reply == "dialogue":
            yield from [builder.question_id, *builder.text_ids(QUESTION), builder.answer_id]
            return
        for text, units in CHUNKS:
            yield from builder.text_ids(text)
            yield from builder.speech_ids(units)

    monkeypatch.setattr(assistant.model, "stream", stream)
    return assistant


def test_an_answer_is_the_question_then_text_and_sound_of_each_chunk(talkative: Assistant) -> None:
    events = list(talkative.answer(SPOKEN, "en"))
    assert events[0] == Heard(QUESTION)
    assert [event.text for event in events[1:] if isinstance(event, Text)] == [text for text, _ in CHUNKS]
    assert isinstance(events[1], Text), "no sound before there is text that it says"
    sound = [event.samples for event in events if isinstance(event, Speech)]
    whole = talkative.decoder.speak([unit for _, units in CHUNKS for unit in units], "ann")
    assert len(sound) > 2, "it comes in pieces"
    assert [unit for event in events if isinstance(event, Speech) for unit in event.units] == [
        unit for _, units in CHUNKS for unit in units
    ], "with the units that each was made of"
    assert np.concatenate(sound) == pytest.approx(whole, abs=1e-4 * float(np.abs(whole).max()))


def test_an_answer_without_speech_is_text_alone(talkative: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = talkative.model.builder
    monkeypatch.setattr(talkative.model, "stream", lambda *_: iter(builder.text_ids("What")))
    assert list(talkative.answer(SPOKEN, "en"))[1:] == [Text("What")]


def test_a_written_question_is_answered_and_read_aloud(
    talkative: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = talkative.model.builder
    asked: list[str] = []

    def stream(prompt: list[int], reply: str, *_: object) -> Iterator[int]:
        asked.append(builder.tokenizer.decode(prompt))
        yield from builder.speech_ids([1, 2, 3]) if reply == "speech" else builder.text_ids("巴黎。")

    monkeypatch.setattr(talkative.model, "stream", stream)
    heard, text, *sound = talkative.answer_written(QUESTION, "zh")
    assert (heard, text) == (Heard(QUESTION), Text("巴黎。"))
    samples = np.concatenate([event.samples for event in sound if isinstance(event, Speech)])
    assert len(samples) == len(talkative.decoder.speak([1, 2, 3], "wei"))
    translate, answer, read = asked
    assert "translate the text to Chinese" in translate
    assert QUESTION in translate
    assert "巴黎" in answer, "the translation is what is answered"
    assert "巴黎" in read
    for no_question in ("  ", "?!", "……", "🙂", "why " * 500, "half of a \ud83d pair"):
        [refusal] = talkative.answer_written(no_question)
        assert isinstance(refusal, Refused)


def test_of_an_answer_without_words_nothing_is_read_aloud(
    talkative: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = talkative.model.builder.speech_ids([1, 2, 3])
    monkeypatch.setattr(
        talkative.model, "stream", lambda _, reply, *__: iter(units if reply == "speech" else [])
    )
    assert list(talkative.answer_written(QUESTION, "en")) == [Heard(QUESTION), Text("")]


@pytest.mark.parametrize(
    ("language", "voice", "spoken"), [("zh", None, "wei"), ("en", None, "ann"), ("zh", "ann", "ann")]
)
def test_a_voice_of_the_answer_or_the_one_that_is_named(
    talkative: Assistant, language: str, voice: str | None, spoken: str
) -> None:
    sound = [e.samples for e in talkative.answer(SPOKEN, language, voice) if isinstance(e, Speech)]
    whole = talkative.decoder.speak([unit for _, units in CHUNKS for unit in units], spoken)
    assert np.concatenate(sound) == pytest.approx(whole, abs=1e-4 * float(np.abs(whole).max()))


def test_a_chunk_is_spoken_while_the_next_is_written(
    talkative: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    second, tokens = threading.Event(), talkative.model.stream
    begins = talkative.model.builder.text_ids(CHUNKS[1][0])

    def stream(*args: Any) -> Iterator[int]:
        written: list[int] = []
        for token in tokens(*args):
            written.append(token)
            if written[-len(begins) :] == begins:
                second.set()
            yield token

    def push(units: list[int]) -> Samples:
        assert second.wait(20), "the text of the second chunk waits for the sound of the first"
        return np.ones(len(units), np.float32)

    mouth = SimpleNamespace(push=push, finish=lambda: np.ones(1, np.float32))
    monkeypatch.setattr(talkative.model, "stream", stream)
    monkeypatch.setattr(talkative.decoder, "stream", lambda voice: mouth)
    sound = [event.samples for event in talkative.answer(SPOKEN, "en") if isinstance(event, Speech)]
    assert sum(map(len, sound)) == 1 + sum(len(units) for _, units in CHUNKS)


def test_a_closed_answer_stops(talkative: Assistant) -> None:
    before = threading.active_count()
    answer = talkative.answer(SPOKEN)
    next(answer)
    next(answer)
    answer.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_earlier_turns_are_seen_and_the_oldest_forgotten(
    talkative: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder, stream = talkative.model.builder, talkative.model.stream
    prompts: list[str] = []

    def noted(prompt: list[int], reply: str, *rest: object) -> Iterator[int]:
        if reply in ("answer", "text"):
            prompts.append(builder.tokenizer.decode(prompt))
        return stream(prompt, reply, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(talkative.model, "stream", noted)
    monkeypatch.setattr(talkative.model.model.generation_config, "max_length", 10_000)
    history = History(longest=10_000)
    list(talkative.answer(SPOKEN, "en", history=history))
    list(talkative.answer_written("法国的首都是哪里？", "zh", history=history))
    list(talkative.answer(SPOKEN, "zh", history=history))
    assert [prompt.count("<|start_header_id|>user") for prompt in prompts] == [1, 2, 3]
    first, second, third = prompts
    assert "It is Paris" in second and "the capital." in second, "the answer, too"
    assert third.index("It is Paris") < third.index("法国的首都") < third.rindex(QUESTION)
    assert "".join(first.split()) in "".join(second.split()), "as it was when it was asked"
    history.longest = len(history.turns[-1]) + 20
    list(talkative.answer(SPOKEN, "zh", history=history))
    assert len(history.turns) == 1


def test_a_turn_that_is_longer_than_what_is_remembered_is_not_forgotten_at_once() -> None:
    history = History(longest=10)
    for turn in ([1] * 6, [2] * 4, [3] * 12):
        history.add(turn)
    assert history.turns == [[3] * 12]


def test_earlier_turns_leave_room_for_question_and_answer(
    talkative: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, longest = talkative.model.stream, 2000
    monkeypatch.setattr(talkative.model.model.generation_config, "max_length", longest)
    seen: list[int] = []

    def noted(prompt: list[int], reply: str, *rest: object) -> Iterator[int]:
        seen.append(len(prompt))
        return stream(prompt, reply, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(talkative.model, "stream", noted)
    history = History(longest=10 * longest)
    list(talkative.answer(SPOKEN, "en", history=history))
    alone = seen[0]
    for _ in range(longest // len(history.turns[0]) + 2):
        list(talkative.answer(SPOKEN, "en", history=history))
    assert len(history.turns) * len(history.turns[0]) > longest
    asked = seen[::2]  # the question is heard first, then answered
    assert asked[1] > alone, "there is room for one"
    assert max(asked) <= longest - alone + 10, "and the markers between turns"


def test_an_answer_that_is_cut_off_says_so(talkative: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    word = talkative.model.builder.text_ids("What")

    def endless(prompt: list[int], reply: str, room: int, *_: object) -> Iterator[int]:
        yield from islice(cycle(word), room)

    monkeypatch.setattr(talkative.model, "stream", endless)
    texts = [event.text for event in talkative.answer_written(QUESTION, "en") if isinstance(event, Text)]
    assert texts[-1].endswith(CUT), "reading it aloud is cut off as well"
    end = next(i for i, text in enumerate(texts) if CUT in text)
    assert "".join(texts[: end + 1]).count("What") > 100


def test_a_written_answer_is_told_while_it_is_written(
    talkative: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = "The capital of France is 巴黎, and that of Italy is 罗马 🙂."
    tokens = talkative.model.builder.text_ids(answer)
    taken: list[int] = []

    def stream(prompt: list[int], reply: str, *_: object) -> Iterator[int]:
        for token in tokens if reply == "text" else []:
            taken.append(token)
            yield token

    monkeypatch.setattr(talkative.model, "stream", stream)
    history = History()
    _, first, *more = talkative.answer_written(QUESTION, "en", history=history)
    texts = [event.text for event in (first, *more) if isinstance(event, Text)]
    assert "".join(texts) == answer, "no character is torn"
    assert len(history.turns) == 1
    taken.clear()
    events = talkative.answer_written(QUESTION, "en", history=history)
    assert [type(next(events)) for _ in range(2)] == [Heard, Text]
    assert len(taken) < len(tokens), "the first words do not wait for the last"
    events.close()  # type: ignore[attr-defined]
    assert len(history.turns) == 1, "what was stopped before its end is not remembered"


def test_of_an_interrupted_answer_the_whole_chunks_are_remembered(talkative: Assistant) -> None:
    history, builder = History(), talkative.model.builder
    answer = talkative.answer(SPOKEN, "en", history=history)
    texts = 0
    while texts < 2:
        texts += isinstance(next(answer), Text)
    answer.close()  # type: ignore[attr-defined]
    [turn] = history.turns
    said = builder.parse_dialogue(turn[turn.index(builder.question_id) :])
    assert said.well_formed
    assert [(chunk.text, list(chunk.units)) for chunk in said.chunks] == [CHUNKS[0]]
    untold = talkative.answer(SPOKEN, "en", history=history)
    next(untold)
    untold.close()  # type: ignore[attr-defined]
    assert history.turns == [turn], "nothing of it was said"


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros(0, np.float32), "nothing"),
        (np.zeros(3 * SAMPLE_RATE, np.float32), "silence"),
        (np.tile(SPOKEN, 30), "too long"),
    ],
)
def test_what_is_no_question_is_refused_in_words(assistant: Assistant, samples: Samples, words: str) -> None:
    [refusal] = assistant.answer(samples, "en")
    assert isinstance(refusal, Refused)
    assert words in refusal.text
    [refusal] = assistant.answer(samples, "zh")
    assert isinstance(refusal, Refused)
    assert not refusal.text.isascii(), "in the language that was asked for"


def test_unknown_names_are_refused_with_those_there_are(assistant: Assistant) -> None:
    with pytest.raises(UnknownLanguage, match="'fr' is unknown; allowed: en, zh"):
        list(assistant.answer(SPOKEN, "fr"))
    with pytest.raises(UnknownVoice, match="'bob' is unknown; allowed: ann, wei"):
        list(assistant.answer(SPOKEN, "en", "bob"))
