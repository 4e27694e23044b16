"""Keys and values of texts that grow token by token: a token is written behind the others, which stay in place.

The cache of transformers is copied whole at each token. What this saves was not measured (benchmarks/log.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

ROOM = 64
"""Tokens for which there is room behind a text before it has to move."""


def growing_cache() -> Cache:
    """An empty cache for the `forward` of a model."""
    return Cache(layer_class_to_replicate=GrowingLayer)


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers'
    """Keys and values (B, G, T, d) of one layer: views of tensors that have room for more tokens."""

    _whole: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write new keys and values (B, G, n, d) behind the others; all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        if self._whole is None or after > self._whole[0].shape[-2]:
            self._whole = _moved(self.keys, key_states, before), _moved(self.values, value_states, before)
        for whole, new in zip(self._whole, (key_states, value_states), strict=True):
            whole[:, :, before:after] = new
        self.keys, self.values = (whole[:, :, :after] for whole in self._whole)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows; they move at the next token."""
        super().batch_select_indices(indices)
        self._whole = None


def _moved(past: Tensor | None, new: Tensor, length: int) -> Tensor:
    """A tensor that begins with the `length` tokens of the past and has room for new ones, and `ROOM` more."""
    rows, groups, more, size = new.shape
    whole = torch.empty(rows, groups, length + more + ROOM, size, dtype=new.dtype, device=new.device)
    if past is not None and length:
        whole[:, :, :length] = past
    return whole
