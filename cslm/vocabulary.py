"""Speech units and markers in the vocabulary of a Llama-family model."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

SPEECH_START = "<sosp>"
SPEECH_END = "<eosp>"
QUESTION = "[question]"
ANSWER = "[answer]"
MARKERS = (SPEECH_START, SPEECH_END, QUESTION, ANSWER)
NOISE = 0.1
"""Spread of new embeddings, as a share of the old ones' standard deviation."""


def unit_token(unit: int) -> str:
    """The token of a speech unit."""
    return f"<unit_{unit}>"


def extend(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, units: int, seed: int) -> int:
    """Add `units` unit tokens and the markers to tokenizer and model, in place; returns how many were new.

    A new row is the mean of the old ones plus a little noise (Hewitt 2021): the mean keeps the logits of
    old tokens where they were, the noise keeps new tokens apart. Rows of old tokens do not change, so old
    text gets the same logits for old tokens as before. Input and output embeddings may be tied or not.
    """
    old = len(tokenizer)
    tokenizer.add_tokens([*MARKERS, *map(unit_token, range(units))], special_tokens=True)
    added = len(tokenizer) - old
    if not added:
        return 0
    generator = torch.Generator().manual_seed(seed)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    layers: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[no-untyped-call]
    matrices: dict[int, torch.Tensor] = {id(layer.weight): layer.weight.data for layer in layers}
    for weight in matrices.values():
        known = weight[:old].float()
        noise = torch.randn(added, weight.shape[1], generator=generator) * known.std(0) * NOISE
        weight[old : old + added] = (known.mean(0) + noise).to(weight.dtype)
    return added
