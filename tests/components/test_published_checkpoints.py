"""A checkpoint as others publish it opens, is extended, saved and opened again; what it knew stays the same.

The models are tiny and have random weights; configuration, number format, files and traits of the chat
template are those of what is published.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from components.stage import StageFailed
from components.train import open_checkpoint, save_checkpoint
from cslm.generation import SpeechLanguageModel
from cslm.sequences import IGNORE, SequenceBuilder
from cslm.text_model import train_text_tokenizer
from cslm.vocabulary import extend
from tests.tiny import TEXTS

UNITS = 40
TEXT = "What is the capital of France? 法国的首都是哪里？ 3.14, naïve."

# What the published templates do beside the plain form: a system turn that names the day, trimmed words.
LLAMA_TEMPLATE = (
    "{% set day = date_string if date_string is defined else strftime_now('%d %b %Y') %}"
    "{{ bos_token + '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + day + '\n\n<|eot_id|>' }}"
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# Thoughts, if empty ones, stand in the last reply only.
QWEN_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if loop.last and message['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

SIZE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# config.json of meta-llama/Llama-3.1-8B-Instruct and Llama-3.2-1B-Instruct (tied), but for the size.
LLAMA = {
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "pad_token_id": None,
}
# config.json of Qwen/Qwen3-8B and Qwen3-0.6B (tied): heads wider than their share, rows that no token has.
QWEN = {"head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0}}
NO_TOKENS = 60


def published(kind: str, tied: bool, folder: Path) -> PretrainedConfig:
    """Write what a hub would give: bfloat16 in several safetensors files, and a tokenizer."""
    tokenizer = train_text_tokenizer(TEXTS, 400)
    config: PretrainedConfig
    if kind == "llama":
        rows = len(tokenizer)
        tokenizer.chat_template = LLAMA_TEMPLATE
        tokenizer.pad_token = None
        config = LlamaConfig(vocab_size=rows, tie_word_embeddings=tied, **SIZE, **LLAMA)
    else:
        tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
        tokenizer.chat_template = QWEN_TEMPLATE
        rows = len(tokenizer) + NO_TOKENS
        config = Qwen3Config(vocab_size=rows, tie_word_embeddings=tied, **SIZE, **QWEN)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:  # norms are all ones where nothing was learnt
            torch.nn.init.normal_(weight, 1.0, 0.2, generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(folder, max_shard_size="40KB")
    tokenizer.save_pretrained(folder)
    return config


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("units", [UNITS, NO_TOKENS + 30])
def test_old_tokens_keep_their_logits(kind: str, tied: bool, units: int, tmp_path: Path) -> None:
    config = published(kind, tied, tmp_path / "published")
    assert len(list((tmp_path / "published").glob("*.safetensors"))) > 1
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "published", dtype=torch.float32)
    before = PreTrainedTokenizerFast.from_pretrained(tmp_path / "published")
    ids = torch.tensor([before.encode(TEXT, add_special_tokens=False) * 6])
    assert ids.shape[1] > 100, "longer than the context from which the rotations were stretched"
    with torch.inference_mode():
        expected = reference(ids).logits[..., : len(before)]

    model, tokenizer = open_checkpoint(tmp_path / "published")
    assert extend(model, tokenizer, units, seed=1) == units + 4
    save_checkpoint(model, tokenizer, tmp_path / "extended")
    again, tokenizer = open_checkpoint(tmp_path / "extended")

    assert tokenizer.encode(TEXT, add_special_tokens=False) * 6 == ids[0].tolist()
    with torch.inference_mode():
        logits = again(ids).logits
    assert logits.shape[-1] == len(tokenizer) == len(before) + units + 4
    torch.testing.assert_close(logits[..., : len(before)], expected, rtol=0, atol=0)
    assert again.get_input_embeddings().weight.isfinite().all()
    shared = again.get_input_embeddings().weight is again.get_output_embeddings().weight
    assert shared is tied
    kept = AutoConfig.from_pretrained(tmp_path / "extended")
    for name in ("model_type", "rope_parameters", "num_key_value_heads", "head_dim", "eos_token_id"):
        assert getattr(kept, name) == getattr(config, name)
    assert extend(again, tokenizer, units, seed=1) == 0, "an extended model has all it needs"


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_speech_is_said_in_its_own_chat_template(kind: str, tmp_path: Path) -> None:
    published(kind, True, tmp_path / "published")
    model, tokenizer = open_checkpoint(tmp_path / "published")
    extend(model, tokenizer, UNITS, seed=1)
    save_checkpoint(model, tokenizer, tmp_path / "extended")
    cslm = SpeechLanguageModel.load(tmp_path / "extended")
    first, second = cslm.builder.asr([1, 2, 39], "法国", "zh"), cslm.builder.tts("France", [7, 8], "en")
    talk = cslm.builder.joined(first, second)
    said = tokenizer.decode(talk.input_ids)
    messages = [
        {
            "role": "user",
            "content": "Please transcribe the speech to text. This is input: "
            "<sosp><unit_1><unit_2><unit_39><eosp>",
        },
        {"role": "assistant", "content": "法国"},
        {"role": "user", "content": "Please read the text aloud. This is input: France"},
    ]
    rendered = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, date_string="26 Jul 2024"
    )
    assert said == rendered + "<sosp><unit_7><unit_8><eosp>" + tokenizer.eos_token
    assert [tokenizer.decode([token]) for token in talk.labels if token != IGNORE][-5:] == [
        "<sosp>", "<unit_7>", "<unit_8>", "<eosp>", tokenizer.eos_token,
    ]  # fmt: skip


def test_a_prompt_does_not_change_with_the_day(tmp_path: Path) -> None:
    published("llama", True, tmp_path)
    model, tokenizer = open_checkpoint(tmp_path)
    extend(model, tokenizer, UNITS, seed=1)
    prompt = tokenizer.decode(SequenceBuilder(tokenizer).prompt_asr([1]))
    assert "Today Date: 26 Jul 2024" in prompt


def test_an_empty_folder_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(StageFailed, match=r"no checkpoint in .* there is no config\.json"):
        open_checkpoint(tmp_path)
