"""Batched and streamed generation agree with one forward pass after another."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cslm.generation import SpeechLanguageModel


@pytest.fixture(scope="module")
def model(tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast]) -> SpeechLanguageModel:
    return SpeechLanguageModel(*tiny)


def greedy(model: SpeechLanguageModel, prompt: list[int], steps: int) -> list[int]:
    """The plainest greedy decoding: no cache, no batch."""
    ids = list(prompt)
    for _ in range(steps):
        with torch.no_grad():
            token = int(model.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token == model.builder.end_id:
            break
        ids.append(token)
    return ids[len(prompt) :]


def test_batches_and_streams_equal_plain_greedy_decoding(model: SpeechLanguageModel) -> None:
    prompts = [model.builder.prompt_asr(list(range(n)), "en") for n in (9, 2, 14, 5, 7)]
    expected = [greedy(model, prompt, 12) for prompt in prompts]
    done: list[int] = []
    assert model.generate(prompts, 12, batch_size=2, on_batch=done.append) == expected
    assert done == [2, 4, 5]
    assert [list(model.stream(prompt, 12)) for prompt in prompts] == expected


def test_a_row_that_ends_does_not_disturb_the_others(model: SpeechLanguageModel) -> None:
    prompts = [model.builder.prompt_tts(text, "en") for text in ("a", "What is", "法国的首都")]
    expected = [greedy(model, prompt, 10) for prompt in prompts]
    end = model.builder.end_id
    try:
        model.builder.end_id = expected[0][3]  # pretend that the first answer ends early
        ended = [greedy(model, prompt, 10) for prompt in prompts]
        assert len(ended[0]) <= 3
        assert model.generate(prompts, 10, batch_size=3) == ended
    finally:
        model.builder.end_id = end


def test_token_losses_are_those_of_the_model_alone(model: SpeechLanguageModel) -> None:
    sequences = [model.builder.asr([1, 2, 3], text, "en") for text in ("a", "What is the capital?")]
    for sequence, (loss, count) in zip(sequences, model.token_losses(sequences, 2), strict=True):
        ids = torch.tensor([sequence.input_ids])
        with torch.no_grad():
            mean = model.model(ids, labels=torch.tensor([sequence.labels]), use_cache=False).loss
        assert loss / count == pytest.approx(float(mean), rel=1e-4)
        assert count == sum(label >= 0 for label in sequence.labels)


def test_mean_hidden_ignores_padding(model: SpeechLanguageModel) -> None:
    together = model.mean_hidden([[5, 6], [7, 8, 9, 10]], batch_size=2)
    alone = model.mean_hidden([[5, 6]], batch_size=1)
    assert together.shape == (3, 2, 32), "two layers and the embeddings"
    assert together[:, 0] == pytest.approx(alone[:, 0], abs=1e-5)
