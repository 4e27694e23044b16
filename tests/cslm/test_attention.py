"""Flash attention is told where documents begin, so none sees another one (its kernel is a stand-in here)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, modeling_flash_attention_utils

from cslm.sequences import IGNORE
from cslm.training.attention import check_attention
from cslm.training.loss import PackedLoss
from cslm.training.processor import kernels_for_processor


@pytest.fixture
def rows() -> dict[str, Tensor]:
    """Two rows: documents of 5, 1 and 9 tokens with one of padding as long as a token, and of 3, 6 and 7."""
    torch.manual_seed(1)
    tokens = torch.randint(20, 60, (2, 16))
    positions = torch.tensor([[*range(5), *range(1), *range(9), *range(1)], [*range(3), *range(6), *range(7)]])
    labels = torch.where(positions > 0, tokens, IGNORE)
    zeros = torch.zeros_like(tokens)
    return {
        "input_ids": tokens,
        "labels": labels,
        "position_ids": positions,
        "task": zeros,
        "understood": zeros + IGNORE,
    }


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the kernel is called with; it does what flash attention's documentation says, on a processor."""
    calls: list[dict[str, Any]] = []

    def varlen(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        softmax_scale: float | None = None,
        causal: bool = False,
        dropout_p: float = 0.0,
    ) -> Tensor:
        calls.append({"q": cu_seqlens_q.tolist(), "k": cu_seqlens_k.tolist(), "longest": max_seqlen_q})
        assert causal and max_seqlen_k == max_seqlen_q
        sizes = cu_seqlens_q.diff().tolist()
        parts = [
            F.scaled_dot_product_attention(
                *(x.transpose(0, 1) for x in document), is_causal=True, scale=softmax_scale, enable_gqa=True
            )
            for document in zip(*(x.split(sizes) for x in (q, k, v)), strict=True)
        ]
        return torch.cat(parts, 1).transpose(0, 1)

    def whole(*_: Any, **__: Any) -> None:
        raise AssertionError("all documents were attended to as if they were one")

    process = modeling_flash_attention_utils._lazy_define_process_function(varlen)
    monkeypatch.setattr(
        modeling_flash_attention_utils,
        "lazy_import_flash_attention",
        lambda *_: ((whole, varlen, None, None, None), (process, dict)),
    )
    return calls


def test_flash_attention_is_told_where_documents_begin(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], rows: dict[str, Tensor], told: list[dict[str, Any]]
) -> None:
    model, _ = tiny
    loss = PackedLoss(model.config.vocab_size, [30, 31, 32], 0.5, ["asr.en"])
    with kernels_for_processor(model, half=False):
        one_by_one, _ = loss(model, rows, model)
    before = model.config._attn_implementation
    model.config._attn_implementation = "flash_attention_2"
    try:
        flash, _ = loss(model, rows, model)
    finally:
        model.config._attn_implementation = before
    begins = [0, 5, 6, 15, 16, 19, 25, 32]
    assert told == [{"q": begins, "k": begins, "longest": 9}] * model.config.num_hidden_layers
    torch.testing.assert_close(flash, one_by_one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "package"), [("flash_attention_2", "flash-attn"), ("flash_attention_3", "flash-attn-3")]
)
def test_what_cannot_be_is_refused_with_what_to_do(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_attention("sdpa")
    with pytest.raises(ValueError, match=f"{name} works on GPUs only, and there is none: take sdpa"):
        check_attention(name)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(ValueError, match=f"{name} needs the package {package}, which is not installed"):
        check_attention(name)
