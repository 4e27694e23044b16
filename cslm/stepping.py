"""One token after the other through a language model; a Llama several times as fast as by its `forward`.

In a small model, and in a large one on a fast device, a step is not arithmetic but the calls around it: modules
that call modules, a cache that is copied at each token, norms of seven operations. Here a layer is about twenty
operations on the model's own weights, and the cache is written in place. Other architectures, and Llamas whose
rotary embedding depends on the length, go through their `forward`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.cache_utils import DynamicCache

Step = Callable[[int], Tensor]
"""The next token -> scores (1, V) of the one behind it."""

FIXED_ROPE = ("default", "linear", "llama3")
"""Rotary embeddings that do not depend on how long the text is."""


def begin(model: PreTrainedModel, prompt: list[int], room: int) -> tuple[Tensor, Step]:
    """Read a prompt: scores (1, V) of the token behind it, and a function that goes on, up to `room` times."""
    cache = DynamicCache()

    def forward(tokens: list[int]) -> Tensor:
        ids = torch.tensor([tokens], device=model.device)
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1]  # type: ignore[no-any-return]

    scores = forward(prompt)
    config: Any = model.config
    if type(model) is LlamaForCausalLM and config.rope_parameters["rope_type"] in FIXED_ROPE:
        return scores, LlamaSteps(model, cache, len(prompt), room)
    return scores, lambda token: forward([token])


class LlamaSteps:
    """Steps of a Llama behind a text of `length` tokens, whose keys and values are in `cache`.

    H heads share G groups of keys and values of d dimensions each; room for T = length + room tokens.
    """

    def __init__(self, model: LlamaForCausalLM, cache: DynamicCache, length: int, room: int) -> None:
        self._model: Any = model
        self._length, self._heads = length, model.config.num_attention_heads
        self._grouped = self._heads != model.config.num_key_value_heads
        past: list[Any] = list(cache.layers)
        self._keys = [_with_room(layer.keys, room) for layer in past]  # (1, G, T, d) each
        self._values = [_with_room(layer.values, room) for layer in past]
        self._size = self._keys[0].shape[-1]
        positions = torch.arange(length + room, device=self._keys[0].device)[None]
        cos, sin = self._model.model.rotary_emb(self._keys[0], positions)  # (1, T, d)
        half = self._size // 2
        self._cos, self._sin = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)

    def __call__(self, token: int) -> Tensor:
        """Scores (1, V) of the token behind this one."""
        place, after, size = self._length, self._length + 1, self._size
        cos, sin = self._cos[place], self._sin[place]
        network = self._model.model
        state = network.embed_tokens.weight[token][None]  # (1, D)
        for layer, keys, values in zip(network.layers, self._keys, self._values, strict=True):
            attention, mlp = layer.self_attn, layer.mlp
            normed = _norm(state, layer.input_layernorm)
            both = torch.cat([attention.q_proj(normed), attention.k_proj(normed)], -1).view(
                -1, size
            )  # (H + G, d)
            both = torch.addcmul(both * cos, both.roll(size // 2, -1), sin)
            keys[0, :, place] = both[self._heads :]
            values[0, :, place] = attention.v_proj(normed).view(-1, size)
            attended = F.scaled_dot_product_attention(
                both[None, : self._heads, None],
                keys[:, :, :after],
                values[:, :, :after],
                scale=attention.scaling,
                enable_gqa=self._grouped,
            )
            state = state + attention.o_proj(attended.reshape(1, -1))
            normed = _norm(state, layer.post_attention_layernorm)
            state = state + mlp.down_proj(mlp.act_fn(mlp.gate_proj(normed)) * mlp.up_proj(normed))
        self._length = after
        return self._model.lm_head(_norm(state, network.norm))  # type: ignore[no-any-return]


def _with_room(past: Tensor, room: int) -> Tensor:
    """(1, G, length, d) -> (1, G, length + room, d), the end of which is to be filled."""
    groups, length, size = past.shape[1:]
    whole = past.new_empty(1, groups, length + room, size)
    whole[:, :, :length] = past
    return whole


def _norm(state: Tensor, norm: nn.Module) -> Tensor:
    weight: Any = norm.weight
    return F.rms_norm(state, weight.shape, weight, norm.variance_epsilon)  # type: ignore[arg-type]
