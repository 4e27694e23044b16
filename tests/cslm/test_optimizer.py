"""Muon where it belongs, AdamW elsewhere."""

from __future__ import annotations

import copy

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cslm.optimizer import MuonAdamW


def step(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> None:
    """One step on gradients whose singular values fall from 1 to 0.05, the same for every model."""
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        gradient = torch.randn(weight.shape, generator=generator)
        if gradient.ndim == 2:
            left, _, right = torch.linalg.svd(gradient, full_matrices=False)
            gradient = left @ torch.diag(torch.linspace(1, 0.05, len(right))) @ right
        weight.grad = gradient
    optimizer.step()
    optimizer.zero_grad()


def test_matrices_move_along_orthogonal_directions_and_embeddings_as_adamw_moves_them(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast],
) -> None:
    model, same = copy.deepcopy(tiny[0]), copy.deepcopy(tiny[0])
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    step(model, MuonAdamW(model, 1e-2, 0.0))
    step(same, torch.optim.AdamW(same.parameters(), 1e-2, betas=(0.9, 0.95), weight_decay=0.0))
    after, adamw = dict(model.named_parameters()), dict(same.named_parameters())
    torch.testing.assert_close(after["model.embed_tokens.weight"], adamw["model.embed_tokens.weight"])
    change = after["model.layers.0.self_attn.q_proj.weight"] - before["model.layers.0.self_attn.q_proj.weight"]
    singular = torch.linalg.svdvals(change)
    assert singular[0] < 2.5 * singular[-1], "Newton-Schulz brings the singular values near one another"
    size = change.square().mean().sqrt()
    assert 0.1 * 1e-2 < size < 0.4 * 1e-2, "the size of a usual step of AdamW, which is 0.2 to 0.4 of the rate"


def test_it_continues_from_its_state(tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast]) -> None:
    model = copy.deepcopy(tiny[0])
    optimizer = MuonAdamW(model, 1e-2, 0.0)
    step(model, optimizer)
    other = copy.deepcopy(model)
    continued = MuonAdamW(other, 1.0, 0.0)
    continued.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(model, optimizer)
    step(other, continued)
    for (name, weight), same in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(weight, same, rtol=0, atol=0, msg=name)
