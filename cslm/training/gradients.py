"""How large the gradients of a backward pass are, whatever becomes of them.

DeepSpeed sums gradients in other places for each stage of ZeRO, and shares them among the ranks: so they are
looked at where they arrive, at the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def norm_of_gradients(weights: Iterable[nn.Parameter], device: torch.device) -> Iterator[Tensor]:
    """A scalar that holds, when the block has gone backward, the sum of the norms of the weights' gradients.

    They are those of this rank and this block alone. It is finite if all of them are, and can be clipped.
    """
    total = torch.zeros((), device=device)

    def add(gradient: Tensor) -> None:
        total.add_(torch.linalg.vector_norm(gradient, dtype=torch.float32))

    trained = (weight for weight in weights if weight.requires_grad)
    hooks = [weight.register_hook(add) for weight in trained]  # type: ignore[no-untyped-call]
    try:
        yield total
    finally:
        for hook in hooks:
            hook.remove()
