"""Batched and streamed generation agree with one forward pass after another."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cslm import generation
from cslm.generation import Sampling, SpeechLanguageModel
from cslm.grammar import (
    DIFFERENT,
    LONGEST_CYCLE,
    LONGEST_TEXT,
    MORE_UNITS,
    RAMBLING,
    REPEATS,
    UNITS_PER_TOKEN,
    Grammar,
    Reply,
    greedy,
)
from cslm.prompts import TTS_PROMPT, prompts
from cslm.sequences import IGNORE
from cslm.text_model import random_llama, train_text_tokenizer
from cslm.vocabulary import extend


@pytest.fixture(scope="module")
def model(tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast]) -> SpeechLanguageModel:
    return SpeechLanguageModel(*tiny)


def plainly(model: SpeechLanguageModel, prompt: list[int], legal: str, steps: int) -> list[int]:
    """The plainest decoding, without cache and batch: the best token that is `legal` and in no circle."""
    ids = list(prompt)
    for _ in range(steps):
        with torch.no_grad():
            ranked = model.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argsort(descending=True)
        reply = ids[len(prompt) :]
        said = letters(model, reply)
        token = next(
            int(t)
            for t in ranked
            if re.fullmatch(legal, said + letters(model, [int(t)])) and not circles(model, [*reply, int(t)])
        )
        if token == model.builder.end_id:
            break
        ids.append(token)
    return ids[len(prompt) :]


def circles(model: SpeechLanguageModel, reply: list[int]) -> bool:
    """Does its text, or the stretch of speech that it ends in, end in a cycle that comes once too often?

    Digits may always come again.
    """
    if model.builder.decode(reply[-1:]).strip().isdigit():
        return False
    text = [token for token, letter in zip(reply, letters(model, reply), strict=True) if letter == "t"]
    speech = reply[len(reply) - len(re.search(r"u*$", letters(model, reply))[0]) :]  # type: ignore[index]
    return any(
        tokens[-length:] * (REPEATS + 1) == tokens[-length * (REPEATS + 1) :]
        for tokens in (text, speech)
        if tokens and tokens[-1] == reply[-1]
        for length in range(1, LONGEST_CYCLE + 1)
        if len(tokens) >= length * (REPEATS + 1)
    )


def letters(model: SpeechLanguageModel, ids: list[int]) -> str:
    """One letter a token: t(ext), u(nit), Q, A, S(peech), E(nd of speech), . (end), x (anything else)."""
    builder, known = model.builder, model.tokenizer.added_tokens_decoder
    markers = {builder.question_id: "Q", builder.answer_id: "A", builder.end_id: "."}
    markers |= {builder.speech_start_id: "S", builder.speech_end_id: "E"}
    return "".join(
        markers.get(
            token, "u" if builder.is_unit(token) else "x" if token in known and known[token].special else "t"
        )
        for token in ids
    )


WRITTEN = r"t*\.?"
DIALOGUE = r"(Q(t*(A((t+Su+E)*(t+(Su*)?)?|(t+Su+E)+\.))?)?)?"
"""Everything that [question] TQ [answer] (TA <sosp> SA <eosp>)+ <end> may begin with."""


ANSWER = r"(t+Su+E)*(t+(Su*)?)?|(t+Su+E)+\."
SPEECH = r"(S(u+(E\.?)?)?)?"
REPLIES: list[tuple[Reply, str]] = [
    ("text", WRITTEN),
    ("dialogue", DIALOGUE),
    ("answer", ANSWER),
    ("speech", SPEECH),
]


@pytest.mark.parametrize(("reply", "legal"), REPLIES)
def test_batches_and_streams_equal_plain_decoding(model: SpeechLanguageModel, reply: Reply, legal: str) -> None:
    prompts = [model.builder.prompt_asr(list(range(n))) for n in (9, 2, 14, 5, 7)]
    expected = [plainly(model, prompt, legal, 12) for prompt in prompts]
    done: list[int] = []
    assert model.generate(prompts, reply, 12, batch_size=2, on_batch=done.append) == expected
    assert done == [2, 4, 5]
    assert [list(model.stream(prompt, reply, 12)) for prompt in prompts] == expected


def test_a_row_that_ends_does_not_disturb_the_others(model: SpeechLanguageModel) -> None:
    prompts = [model.builder.prompt_tts(text) for text in ("a", "What is", "法国的首都")]
    alone = [plainly(model, prompt, WRITTEN, 10) for prompt in prompts]
    model.builder.end_id, end = alone[0][3], model.builder.end_id  # pretend that the first answer ends early
    try:
        early = SpeechLanguageModel.__new__(SpeechLanguageModel)
        early.__dict__ |= model.__dict__
        early._grammar = Grammar(model.builder, model.model.config.vocab_size)
        ended = [plainly(early, prompt, WRITTEN, 10) for prompt in prompts]
        assert len(ended[0]) <= 3
        assert early.generate(prompts, "text", 10, batch_size=3) == ended
    finally:
        model.builder.end_id = end


@given(st.integers(0, 2**32), st.sampled_from(REPLIES))
def test_whatever_a_model_wants_its_reply_can_be_read(
    model: SpeechLanguageModel, seed: int, rules: tuple[Reply, str]
) -> None:
    reply, legal = rules
    grammar = Grammar(model.builder, model.model.config.vocab_size + 5)
    generator = torch.Generator().manual_seed(seed)
    position, ids = [grammar.begin(reply, [])], list[int]()
    while len(ids) < 400 and ids[-1:] != [model.builder.end_id]:
        wants = torch.randn(1, model.model.config.vocab_size + 5, generator=generator)
        wants[0, model.builder.unit_ids] += 3 * torch.rand((), generator=generator)  # likes to speak, on and on
        ids += grammar.choose(wants, position, greedy)
        assert not circles(model, ids)
    said = letters(model, ids)
    assert re.fullmatch(legal, said), said
    for chunk in re.findall(r"(t+)S(u*)", said):
        assert len(chunk[1]) <= UNITS_PER_TOKEN * len(chunk[0]) + MORE_UNITS
    if said.endswith(".") and reply == "dialogue":
        assert model.builder.parse_dialogue(ids).well_formed


def test_a_model_that_goes_round_in_circles_is_stopped(model: SpeechLanguageModel) -> None:
    grammar = Grammar(model.builder, model.model.config.vocab_size)
    position, said = [grammar.begin("text", [])], list[int]()
    cycle = model.builder.text_ids("France the capital")
    while len(said) < 100 and said[-1:] != [model.builder.end_id]:
        wants = torch.zeros(1, model.model.config.vocab_size)
        wants[0, model.builder.end_id] = 1
        wants[0, cycle[len(said) % len(cycle)]] = 2
        said += grammar.choose(wants, position, greedy)
    assert said == [*cycle * REPEATS, model.builder.end_id]


def test_a_number_may_have_equal_digits(model: SpeechLanguageModel) -> None:
    grammar = Grammar(model.builder, model.model.config.vocab_size)
    position, said = [grammar.begin("text", [])], list[int]()
    wanted = model.builder.text_ids("10000000")
    assert len(wanted) > REPEATS + 1, "digit by digit"
    for token in [*wanted, model.builder.end_id]:
        wants = torch.zeros(1, model.model.config.vocab_size)
        wants[0, token] = 1
        said += grammar.choose(wants, position, greedy)
    assert said == [*wanted, model.builder.end_id]


@pytest.mark.parametrize(("reply", "ending"), [("text", r"\."), ("answer", r"Su+E\.")])
def test_a_model_that_shuffles_the_same_words_comes_to_an_end(
    model: SpeechLanguageModel, reply: Reply, ending: str
) -> None:
    grammar = Grammar(model.builder, model.model.config.vocab_size)
    generator = torch.Generator().manual_seed(1)
    position, said = [grammar.begin(reply, [])], list[int]()
    words = list(dict.fromkeys(model.builder.text_ids("What is the capital of France?")))[:DIFFERENT]
    while len(said) < 400 and said[-1:] != [model.builder.end_id]:
        wants = torch.rand(1, model.model.config.vocab_size, generator=generator)
        wants[0, words] += 1
        said += grammar.choose(wants, position, greedy)
    assert re.fullmatch(rf"t{{{RAMBLING}}}{ending}", letters(model, said))


def test_a_model_that_only_writes_is_made_to_speak(model: SpeechLanguageModel) -> None:
    grammar = Grammar(model.builder, model.model.config.vocab_size)
    generator = torch.Generator().manual_seed(1)
    position, said = [grammar.begin("dialogue", [])], list[int]()
    while len(said) < 512 and said[-1:] != [model.builder.end_id]:
        wants = torch.rand(1, model.model.config.vocab_size, generator=generator)
        wants[0, [model.builder.question_id, model.builder.answer_id, *model.builder.unit_ids]] -= 2
        wants[0, [model.builder.speech_start_id, model.builder.speech_end_id, model.builder.end_id]] -= 1
        said += grammar.choose(wants, position, greedy)
    text = rf"t{{{LONGEST_TEXT}}}"
    assert re.fullmatch(rf"Q{text}A({text}SuE)+.*", letters(model, said))


def test_reading_aloud_takes_no_longer_than_its_text_can_need(model: SpeechLanguageModel) -> None:
    grammar = Grammar(model.builder, model.model.config.vocab_size)
    generator = torch.Generator().manual_seed(1)
    for text in ("France", "What is the capital of France?"):
        position, said = [grammar.begin("speech", model.builder.prompt_tts(text))], list[int]()
        while len(said) < 768 and said[-1:] != [model.builder.end_id]:
            wants = torch.rand(1, model.model.config.vocab_size, generator=generator)
            wants[0, model.builder.unit_ids] += 2  # likes to speak, on and on
            said += grammar.choose(wants, position, greedy)
        units = UNITS_PER_TOKEN * len(model.builder.text_ids(text)) + MORE_UNITS
        assert re.fullmatch(rf"Su{{{units}}}E\.", letters(model, said))


def test_instructions_are_no_reply(tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast]) -> None:
    tokenizer = train_text_tokenizer(["What is the capital?"], 270, prompts(["en", "zh"]))
    network = random_llama(tokenizer, hidden=32, layers=1, heads=2, seed=1)
    extend(network, tokenizer, units=8, seed=1)
    model = SpeechLanguageModel(network, tokenizer)
    [instruction] = model.builder.text_ids(TTS_PROMPT)
    wants = torch.zeros(1, network.config.vocab_size)
    wants[0, instruction] = 1
    position = [model._grammar.begin("text", [])]
    assert model._grammar.choose(wants, position, greedy) != [instruction]


def test_sampling_draws_from_the_nucleus_and_a_seed_repeats(model: SpeechLanguageModel) -> None:
    pick = Sampling(top_p=0.7, temperature=1.0, seed=5).pick()
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(4000, 1)
    drawn = pick(scores).bincount(minlength=4) / 4000
    assert drawn[2:].sum() == 0, "0.5 and 0.3 are the fewest that reach 0.7"
    assert float(drawn[0]) == pytest.approx(0.5 / 0.8, abs=0.03)
    prompt = model.builder.prompt_tts("What")
    draw = lambda seed: list(model.stream(prompt, "text", 12, Sampling(1.0, 1.0, seed)))  # noqa: E731
    assert draw(1) == draw(1) != draw(2)
    for wrong in ({"top_p": 0.0}, {"top_p": 1.1}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match="is not allowed; give"):
            Sampling(**wrong)


def test_token_losses_are_those_of_the_model_alone(model: SpeechLanguageModel) -> None:
    sequences = [model.builder.asr([1, 2, 3], text, "en") for text in ("a", "What is the capital?")]
    for sequence, (loss, count) in zip(sequences, model.token_losses(sequences, 2), strict=True):
        ids = torch.tensor([sequence.input_ids])
        with torch.no_grad():
            mean = model.model(ids, labels=torch.tensor([sequence.labels]), use_cache=False).loss
        assert loss / count == pytest.approx(float(mean), rel=1e-4)
        assert count == sum(label >= 0 for label in sequence.labels)


def test_only_labelled_tokens_get_logits_and_few_at_once(
    model: SpeechLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = model.builder
    sequences = [builder.asr([1, 2, 3], "a", "en"), builder.tts("What is the capital?", [4, 5] * 9, "en")]
    sequences.append(replace(sequences[0], labels=[IGNORE] * len(sequences[0].labels)))
    expected = []
    for sequence in sequences:
        with torch.no_grad():
            logits = model.model(torch.tensor([sequence.input_ids]), use_cache=False).logits[0, :-1]
        targets = torch.tensor(sequence.labels[1:])
        expected.append(float(functional.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")))
    monkeypatch.setattr(generation, "LOGITS_AT_ONCE", 7)
    sizes: list[int] = []
    hook = model.model.get_output_embeddings().register_forward_hook(
        lambda module, states, logits: sizes.append(logits.numel() // logits.shape[-1])
    )
    try:
        losses = model.token_losses(sequences, batch_size=3)
    finally:
        hook.remove()
    assert [loss for loss, _ in losses] == pytest.approx(expected, rel=1e-5)
    assert [count for _, count in losses] == [sum(x != IGNORE for x in s.labels[1:]) for s in sequences]
    assert max(sizes) <= 7
    assert sum(sizes) == sum(count for _, count in losses)


def test_mean_hidden_is_that_of_the_slice_whatever_the_padding(model: SpeechLanguageModel) -> None:
    whole = slice(0, 2)
    together = model.mean_hidden([([5, 6], whole), ([7, 8, 9, 10], slice(1, 3))], batch_size=2)
    alone = model.mean_hidden([([5, 6], whole)], batch_size=1)
    assert together.shape == (3, 2, 32), "two layers and the embeddings"
    assert together[:, 0] == pytest.approx(alone[:, 0], abs=1e-5)
    with torch.no_grad():
        states = model.model(torch.tensor([[7, 8, 9, 10]]), output_hidden_states=True).hidden_states
    assert together[1, 1] == pytest.approx(states[1][0, 1:3].mean(0).numpy(), abs=1e-5)


def test_prompts_tell_where_the_utterance_is(model: SpeechLanguageModel) -> None:
    builder = model.builder
    prompt, where = builder.heard([3, 4, 5])
    assert prompt == builder.prompt_asr([3, 4, 5])
    assert builder.parse_units(prompt[where]) == [3, 4, 5] and len(prompt[where]) == 3
    for text in ("What is the capital?", "法国的首都是哪里？", " x"):
        prompt, where = builder.read(text)
        assert prompt == builder.prompt_tts(text)
        assert builder.decode(prompt[where]) == text
