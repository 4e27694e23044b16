"""Muon for the matrices inside a network, AdamW for everything else, as one optimizer.

Muon (Jordan 2024, kellerjordan.github.io/posts/muon) orthogonalises the momentum of each weight matrix. A small
model that has to learn to copy, from text or from speech, learns it in fewer tokens (benchmarks/log.md).
Embeddings, output layers and norms get AdamW. One learning rate serves both: Muon's steps
are scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982, section 2.2).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

BETAS = (0.9, 0.95)


class MuonAdamW(torch.optim.Optimizer):
    """Parameters of `model` in two groups, matrices first."""

    def __init__(self, model: nn.Module, learning_rate: float, weight_decay: float) -> None:
        embeddings = {
            id(weight)
            for module in model.modules()
            if isinstance(module, nn.Embedding)
            for weight in module.parameters()
        }
        trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
        inside = [
            weight.ndim == 2 and id(weight) not in embeddings and "head" not in name for name, weight in trained
        ]
        matrices = [weight for (_, weight), is_matrix in zip(trained, inside, strict=True) if is_matrix]
        others = [weight for (_, weight), is_matrix in zip(trained, inside, strict=True) if not is_matrix]
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                matrices, learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(others, learning_rate, betas=BETAS, weight_decay=weight_decay),
        ]
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let both parts work on this optimizer's groups and state, which schedulers and checkpoints know."""
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups = [group]
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override] # no closures here
        """One step of both."""
        assert closure is None
        for part in self._parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        super().load_state_dict(state_dict)
        self._share()
