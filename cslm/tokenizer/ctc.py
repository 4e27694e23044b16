"""What all recognisers of units share: CTC's blank, its loss, and its best path (Graves et al. 2006)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

BLANK = 0
"""Label 0 is the blank, label i + 1 the name at i."""


def ctc_loss(log_probs: Tensor, lengths: Tensor, targets: Sequence[Tensor]) -> Tensor:
    """Mean over utterances of the CTC loss a label; log_probs (B, T, V), lengths (B,), targets (n,) each.

    Targets may lie on the processor, whatever device the rest is on.
    """
    device = log_probs.device
    labels = torch.cat(list(targets)).to(device)
    target_lengths = torch.tensor([len(target) for target in targets], device=device)
    return F.ctc_loss(log_probs.float().transpose(0, 1), labels, lengths, target_lengths, BLANK)


def best_labels(log_probs: npt.NDArray[np.float32], names: Sequence[str]) -> list[str]:
    """Best path (greedy CTC): (T, labels + 1) -> label names."""
    best = log_probs.argmax(-1)
    merged = best[np.concatenate([[True], best[1:] != best[:-1]])] if len(best) else best
    return [names[index - 1] for index in merged if index != BLANK]


def needed_frames(names: Sequence[str]) -> int:
    """Frames that CTC needs: one a label, and a blank between two equal ones."""
    return len(names) + sum(a == b for a, b in itertools.pairwise(names))
