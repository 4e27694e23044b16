"""What is built can be read back, and only the assistant's tokens are learned."""

from __future__ import annotations

import random
from collections import deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cslm.prompts import TTS_PROMPT, prompts
from cslm.sequences import IGNORE, Chunk, SequenceBuilder
from cslm.text_model import random_llama, train_text_tokenizer
from cslm.vocabulary import draw, extend
from tests.tiny import UNITS

TEXT = st.text(min_size=1, max_size=30)
UNIT_RUN = st.lists(st.integers(0, UNITS - 1), min_size=1, max_size=12)
CHUNKS = st.lists(st.builds(Chunk, TEXT, UNIT_RUN.map(tuple)), min_size=1, max_size=4)
LANGUAGE = st.sampled_from(["en", "zh", "sw"])


@pytest.fixture(scope="module")
def builder(tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast]) -> SequenceBuilder:
    return SequenceBuilder(tiny[1])


@given(UNIT_RUN, TEXT, CHUNKS, LANGUAGE, LANGUAGE, st.sampled_from(["interleaved", "full"]))
def test_a_dialogue_reads_back_as_it_was_built(
    builder, units, question, chunks, asked, answered, chain
) -> None:  # type: ignore[no-untyped-def]
    sequence = builder.dialogue(units, question, chunks, asked, answered, chain)
    prompt = builder.prompt_dialogue(units, asked, answered, chain)
    assert sequence.input_ids[: len(prompt)] == prompt
    parsed = builder.parse_dialogue(sequence.input_ids[len(prompt) :])
    assert parsed.well_formed
    assert parsed.question == question
    assert parsed.text == "".join(chunk.text for chunk in chunks)
    assert parsed.units == [unit for chunk in chunks for unit in chunk.units]
    if chain == "interleaved":
        assert list(parsed.chunks) == chunks


@given(UNIT_RUN, TEXT, LANGUAGE)
def test_loss_is_on_the_assistants_tokens_only(builder, units, text, language) -> None:  # type: ignore[no-untyped-def]
    for sequence, prompt in (
        (builder.asr(units, text, language), builder.prompt_asr(units)),
        (builder.tts(text, units, language), builder.prompt_tts(text)),
        (builder.mt(text, text, language), builder.prompt_mt(text, language)),
        (builder.text(text, text, language), builder.prompt_text(text)),
    ):
        assert sequence.labels == [IGNORE] * len(prompt) + sequence.input_ids[len(prompt) :]
        assert sequence.input_ids[-1] == builder.end_id
    assert builder.decode(builder.text_ids(text)) == text
    assert builder.parse_units(builder.speech_ids(units)) == units


def test_a_talk_is_what_the_chat_template_makes_of_its_messages(builder: SequenceBuilder) -> None:
    first, second = builder.text("What is a?", "It is b.", "en"), builder.text("And c?", "It is d.", "en")
    talk = builder.joined(first, second)
    messages = [
        {"role": role, "content": content}
        for role, content in zip(
            ["user", "assistant"] * 2, ["What is a?", "It is b.", "And c?", "It is d."], strict=True
        )
    ]
    rendered = builder.tokenizer.apply_chat_template(messages, tokenize=False)
    assert builder.tokenizer.decode(talk.input_ids) == rendered
    learned = [token for token in talk.labels if token != IGNORE]
    assert builder.tokenizer.decode(learned) == "It is b.<|eot_id|>It is d.<|eot_id|>"
    assert all(label in (IGNORE, token) for token, label in zip(talk.input_ids, talk.labels, strict=True))


@given(UNIT_RUN, TEXT, CHUNKS)
def test_what_is_to_be_understood_keeps_its_place_in_a_talk(builder, units, question, chunks) -> None:  # type: ignore[no-untyped-def]
    spoken = [index % len(question) for index in range(len(units))]
    one = builder.dialogue(units, question, chunks, "en", "zh", "interleaved", spoken)
    talk = builder.joined(builder.joined(one, one), one)
    known = [(talk.input_ids[place - 1], token) for place, token in sorted(talk.understood.items())]
    alone = [(one.input_ids[place - 1], token) for place, token in sorted(one.understood.items())]
    assert known == alone * 3
    assert talk.task == "cross_lingual"


def test_text_that_looks_like_a_marker_stays_text(builder: SequenceBuilder) -> None:
    ids = builder.text_ids("say <sosp><unit_3><eosp> [answer]<|eot_id|>")
    assert not {builder.speech_start_id, builder.answer_id, builder.end_id} & set(ids)
    assert builder.parse_units(ids) == []


@pytest.mark.parametrize(
    "markers", ["A", "QA", "QAs", "QAe", "QAu", "QAsse", "QAstue", "QQAtsue", "tQAtsue", "QAtsueA", "QAtsuet"]
)
def test_illegal_order_of_markers_is_noticed(builder: SequenceBuilder, markers: str) -> None:
    tokens = {
        "Q": builder.question_id,
        "A": builder.answer_id,
        "s": builder.speech_start_id,
        "e": builder.speech_end_id,
        "u": builder.speech_ids([1])[1],
        "t": builder.text_ids("x")[0],
    }
    assert not builder.parse_dialogue([tokens[marker] for marker in markers]).well_formed


def test_an_interleaved_answer_speaks_before_the_text_is_over(builder: SequenceBuilder) -> None:
    chunks = [Chunk("What is ", (1, 2)), Chunk("the capital?", (3,))]
    ids = builder.dialogue([1], "x", chunks, "en", "en", "interleaved").input_ids
    full = builder.dialogue([1], "x", chunks, "en", "en", "full").input_ids
    first = [ids.index(builder.speech_ids([u])[1], ids.index(builder.answer_id)) for u in (1, 3)]
    text_between = [t for t in ids[first[0] : first[1]] if not builder.is_unit(t)]
    assert builder.decode(text_between) == "the capital?"
    assert ids.count(builder.speech_start_id) == 3 and full.count(builder.speech_start_id) == 2


@pytest.mark.parametrize("tied", [True, False])
def test_extending_the_vocabulary_keeps_old_logits(tied: bool) -> None:
    tokenizer = train_text_tokenizer(["hello world"], 300)
    model = random_llama(tokenizer, 32, 2, 2, seed=1)
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    ids = torch.tensor([tokenizer.encode("hello world")])
    with torch.no_grad():
        before = model(ids).logits
        old = len(tokenizer)
        assert extend(model, tokenizer, UNITS, seed=1) == UNITS + 4
        after = model(ids).logits
    torch.testing.assert_close(after[..., :old], before)
    assert after.shape[-1] == len(tokenizer)
    new = model.get_input_embeddings().weight[old:]
    assert (torch.nn.functional.cosine_similarity(new[:, None], new[None], dim=-1).triu(1) < 0.95).all()
    assert extend(model, tokenizer, UNITS, seed=1) == 0


def test_drawn_embeddings_spread_like_the_others_and_leave_them_alone() -> None:
    tokenizer = train_text_tokenizer(["hello world"], 300)
    model = random_llama(tokenizer, 32, 2, 2, seed=1)
    weight = model.get_input_embeddings().weight.data
    pushed, kept = range(20, 80), [*range(20), *range(80, len(weight))]
    weight[list(pushed)] = torch.ones(32) + 1e-3 * torch.randn(60, 32)  # all the same way, as training does
    before = weight.clone()
    draw(model, pushed, kept, seed=1)
    torch.testing.assert_close(weight[kept], before[kept])
    assert weight[20:80].std(0).mean().item() == pytest.approx(before[kept].std(0).mean().item(), rel=0.1)


def test_units_are_understood_as_the_token_that_they_speak_one_unit_later(builder: SequenceBuilder) -> None:
    text = "the capital法?"
    heard = builder.asr([3, 4, 5, 6, 7], text, "en", [0, 4, None, 10, 11])
    assert heard.labels == builder.asr([3, 4, 5, 6, 7], text, "en").labels
    first = heard.input_ids.index(builder.speech_ids([3])[1])
    words = {place - first: builder.decode([token]) for place, token in heard.understood.items()}
    assert words == {1: "the", 2: " capital", 4: " capital", 5: "法"}, (
        "a unit's token is told at the next unit, that of the last behind it"
    )
    dialogue = builder.dialogue([3, 4], "法", [Chunk("a", (1,))], "en", "zh", spoken=[0, 0])
    assert [builder.decode([token]) for token in dialogue.understood.values()] == ["法", "法"]


def test_what_is_read_is_understood_as_itself(builder: SequenceBuilder) -> None:
    sequence = builder.reading(builder.text("the capital?", "法", "en"))
    prompt = builder.prompt_text("the capital?")
    assert builder.decode(sequence.understood.values()) == "the capital?"
    assert all(prompt[place] == token for place, token in sequence.understood.items())


def test_poor_speech_is_read_but_what_is_written_stays_right(builder: SequenceBuilder) -> None:
    chunks = [Chunk("the ", (1, 2, 3, 4)), Chunk("capital", (5, 6, 7, 8, 9))]
    whole = builder.dialogue([10, 11], "q", chunks, "en", "en")
    assert builder.misspoken(whole, 0.0, deque(), random.Random(1)) == whole
    foreign = builder.speech_ids([12, 13])[1:-1]
    seen: set[tuple[int, ...]] = set()
    for attempt in range(50):
        poor = builder.misspoken(whole, 0.5, deque([foreign], maxlen=1), random.Random(attempt))
        question, reply = (
            poor.input_ids.index(token) for token in (builder.speech_start_id, builder.question_id)
        )
        assert builder.parse_units(poor.input_ids[question:reply]) == [10, 11], (
            "the user's speech is left alone"
        )
        read = builder.parse_dialogue(poor.input_ids[reply:])
        assert [chunk.text for chunk in read.chunks] == ["the ", "capital"]
        written = [label for label in poor.labels if label != IGNORE]
        assert builder.decode(written) == "qthe capital"
        stretches = zip(read.chunks, chunks, strict=True)
        kept = [right.units for poor_chunk, right in stretches if len(poor_chunk.units) == len(right.units)]
        assert builder.parse_units(written) == [unit for units in kept for unit in units]
        assert written.count(builder.speech_end_id) == len(kept), "where a foreign stretch ends is not learned"
        seen |= {chunk.units for chunk in read.chunks}
    assert (12, 13) in seen and len(seen) > 10


def test_a_small_model_writes_words_and_takes_each_prompt_as_one_token(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast],
) -> None:
    tokenizer = tiny[1]
    han = [*tokenizer.tokenize("法"), *tokenizer.tokenize("国")]
    assert tokenizer.tokenize("the capital法国?") == ["the", "Ġcapital", *han, "?"]
    assert len(tokenizer.tokenize("法国")) == 2
    for prompt in prompts(["en", "zh"]):
        assert len(tokenizer.tokenize(prompt)) == 1, prompt
    for text in ("Ünïcode\n\t 鱻 🎧", TTS_PROMPT + "hi"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
