"""Attention inside each document of packed rows on a GPU: flash attention, told where documents begin.

    position     0 1 2 3 4 | 0 1 2 | 0 1 2 3
    cu_seq_lens  0           5       8         12

Without it transformers makes a mask over all tokens of a micro batch: memory of their number squared.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids
from transformers.utils.import_utils import is_flash_attn_2_available, is_flash_attn_3_available

PACKAGES = {
    "flash_attention_2": ("flash-attn", is_flash_attn_2_available),
    "flash_attention_3": ("flash-attn-3", is_flash_attn_3_available),
}


def check_attention(name: str) -> None:
    """Can this machine do it?

    Raises:
        ValueError: there is no GPU, or the package that has the kernel is missing.
    """
    if name not in PACKAGES:
        return
    package, available = PACKAGES[name]
    if not torch.cuda.is_available():
        raise ValueError(f"attn_implementation {name} works on GPUs only, and there is none: take sdpa")
    if not available():
        raise ValueError(
            f"attn_implementation {name} needs the package {package}, which is not installed: install it into "
            "the environment (or image) of this component, or take sdpa"
        )


def borders(name: str, position_ids: Tensor) -> dict[str, Any]:
    """What flash attention is told of documents, from positions (1, T) that restart with each; others: nothing.

    Once for all layers: each would read it from the positions otherwise, and wait for the GPU to do so.
    """
    if name not in PACKAGES:
        return {}
    found = prepare_fa_kwargs_from_position_ids(position_ids)  # type: ignore[no-untyped-call]
    (queries, keys), (longest_query, longest_key) = found
    return {
        "cu_seq_lens_q": queries,  # (documents + 1,)
        "cu_seq_lens_k": keys,
        "max_length_q": int(longest_query),
        "max_length_k": int(longest_key),
    }
