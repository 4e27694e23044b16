"""On a processor, documents of a packed row are attended to one at a time, with the same result as apart."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cslm.precision import half_precision
from cslm.training.processor import kernels_for_processor

LENGTHS = (5, 1, 9, 3)


def grouped_llama() -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )


def test_documents_of_a_row_get_the_logits_that_they_get_alone() -> None:
    model = grouped_llama()
    documents = [torch.randint(0, 50, (length,)) for length in LENGTHS]
    alone = [model(input_ids=document[None]).logits[0] for document in documents]
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    with kernels_for_processor(model):
        packed = model(input_ids=torch.cat(documents)[None], position_ids=positions[None], use_cache=False)
    # Half precision: eight bits of mantissa.
    tolerance = 0.02 if half_precision()._enabled else 1e-5
    torch.testing.assert_close(packed.logits[0].float(), torch.cat(alone), rtol=tolerance, atol=tolerance)


def test_a_document_learns_nothing_from_its_neighbours() -> None:
    model = grouped_llama()
    tokens = torch.randint(0, 50, (1, 8))
    embeddings = model.get_input_embeddings()(tokens).detach().requires_grad_()
    with kernels_for_processor(model):
        positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])
        model(inputs_embeds=embeddings, position_ids=positions, use_cache=False).logits[0, 3:].sum().backward()
    assert embeddings.grad is not None
    touched = embeddings.grad[0].abs().sum(-1) > 0
    assert touched.tolist() == [False] * 3 + [True] * 5


def test_the_model_is_left_as_it_was() -> None:
    model = grouped_llama()
    before = model.config._attn_implementation
    tokens = torch.randint(0, 50, (2, 6))
    expected = model(input_ids=tokens).logits
    with kernels_for_processor(model):
        assert model.config._attn_implementation != before
    assert model.config._attn_implementation == before
    torch.testing.assert_close(model(input_ids=tokens).logits, expected, rtol=0, atol=0)
