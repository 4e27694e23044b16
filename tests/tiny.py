"""A tiny model and tokenizer that know units, for tests that need the real thing but no skill."""

from __future__ import annotations

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cslm.prompts import prompts
from cslm.text_model import random_llama, train_text_tokenizer
from cslm.training import TrainingConfig
from cslm.vocabulary import extend

UNITS = 16
TEXTS = ["What is the capital of France?", "法国的首都是哪里？"]
TRAINING = TrainingConfig(
    learning_rate=3e-3,
    epochs=1.0,
    max_steps=8,
    batch_tokens=256,
    micro_batch_tokens=None,
    warmup=0.1,
    weight_decay=0.0,
    checkpoint_minutes=1e-9,
    optimizer="adamw",
    zero_stage=2,
    offload=None,
    speech_loss=1.0,
    half_precision=True,
    gradient_checkpointing=False,
    attn_implementation="sdpa",
    seed=1,
)
"""Eight steps with a checkpoint after each."""


def make() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A two-layer Llama with 16 units."""
    tokenizer = train_text_tokenizer(TEXTS, 400, prompts(["en", "zh"]))
    model = random_llama(tokenizer, hidden=32, layers=2, heads=2, seed=1)
    extend(model, tokenizer, UNITS, seed=1)
    return model.eval(), tokenizer
