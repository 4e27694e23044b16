"""What makes training fast on a processor: half-precision products, and attention inside each document only.

    position   0 1 2 3 4 | 0 1 2 | 0 1 2 3
    attends    causal    | causal| causal       (positions that restart begin a document)

A mask over the whole row makes every document pay for all others: four rows of 512 tokens with documents of
about 110 train at half the speed. Graphics processors have kernels for this (flash attention reads the same
positions); there is none for processors, so documents are taken one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cslm.precision import half_precision

NAME = "documents"


@contextmanager
def kernels_for_processor(model: PreTrainedModel, half: bool = True) -> Iterator[None]:
    """Make `model` fast on inputs (1, T) whose `position_ids` restart with each document, and only on those."""
    before = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, lambda *_, **__: None)
    model.set_attn_implementation(NAME)
    # Around the model itself: DeepSpeed switches off what is around its engine.
    model.forward = half_precision(half)(model.forward)
    try:
        yield
    finally:
        del model.forward
        model.set_attn_implementation(before)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_ids: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query (1, heads, T, d), key and value (1, heads or groups, T, d) -> (1, T, heads, d).

    Scores are made in float32 whatever the precision of the rest: the half-precision kernel is slower there.
    """
    assert position_ids is not None and attention_mask is None and len(query) == 1
    starts = (position_ids[0] == 0).nonzero().flatten().tolist()
    sizes = [end - start for start, end in zip(starts, [*starts[1:], query.shape[2]], strict=True)]
    grouped = key.shape[1] != query.shape[1]
    with torch.autocast(query.device.type, enabled=False):
        queries, keys, values = (torch.split(x.float(), sizes, 2) for x in (query, key, value))
        attended = [
            F.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=grouped
            )
            for q, k, v in zip(queries, keys, values, strict=True)
        ]
    return torch.cat(attended, 2).transpose(1, 2).contiguous(), None
