"""A tiny model and tokenizer that know units, for tests that need the real thing but no skill."""

from __future__ import annotations

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cslm.sequences import prompts
from cslm.text_model import random_llama, train_text_tokenizer
from cslm.vocabulary import extend

UNITS = 16
TEXTS = ["What is the capital of France?", "法国的首都是哪里？"]


def make() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A two-layer Llama with 16 units."""
    tokenizer = train_text_tokenizer(TEXTS, 400, prompts(["en", "zh"]))
    model = random_llama(tokenizer, hidden=32, layers=2, heads=2, seed=1)
    extend(model, tokenizer, UNITS, seed=1)
    return model.eval(), tokenizer
