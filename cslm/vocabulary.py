"""Speech units and markers in the vocabulary of a Llama-family model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

SPEECH_START = "<sosp>"
SPEECH_END = "<eosp>"
QUESTION = "[question]"
ANSWER = "[answer]"
MARKERS = (SPEECH_START, SPEECH_END, QUESTION, ANSWER)


def unit_token(unit: int) -> str:
    """The token of a speech unit."""
    return f"<unit_{unit}>"


def extend(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, units: int, seed: int, known: int | None = None
) -> int:
    """Add `units` unit tokens and the markers to tokenizer and model, in place; returns how many were new.

    Rows of old tokens do not change, so old text gets the same logits for old tokens as before. Input and
    output embeddings may be tied or not. `known` tells how many tokens the model knows, if the tokenizer got
    more since.
    """
    old = len(tokenizer) if known is None else known
    tokenizer.add_tokens([*MARKERS, *map(unit_token, range(units))], special_tokens=True)
    added = len(tokenizer) - old
    if not added:
        return 0
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    draw(model, range(old, old + added), range(old), seed)
    return added


def draw(model: PreTrainedModel, tokens: Iterable[int], like: Iterable[int], seed: int) -> None:
    """Give `tokens` new embeddings, in place: the mean of the rows `like`, and noise of their spread.

    The mean puts new tokens among the old ones (Hewitt 2021). The noise is as wide as the old rows are: with
    less, hundreds of units begin alike, and a small model first has to pull them apart.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, known_rows = list(tokens), list(like)
    layers: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[no-untyped-call]
    matrices: dict[int, torch.Tensor] = {id(layer.weight): layer.weight.data for layer in layers}
    for weight in matrices.values():
        known = weight[known_rows].float()
        noise = torch.randn(len(rows), weight.shape[1], generator=generator) * known.std(0)
        weight[rows] = (known.mean(0) + noise).to(weight.dtype)
