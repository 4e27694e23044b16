"""How much of a machine's arithmetic a training uses: MFU (PaLM, arXiv 2204.02311, appendix B).

The paper divides by what a vendor promises. Processors come without one, so here it is what the machine
reaches in one large matrix product, in the precision that the training works in: 1 is a training that does
nothing but multiply as fast as this machine can.
"""

from __future__ import annotations

import math
import time

import torch
from torch import nn
from transformers import PreTrainedModel

from cslm.precision import half_precision

SIZE = {"cpu": 2048, "cuda": 8192}
TRIES = 4


def flops_per_token(model: PreTrainedModel) -> float:
    """Operations of forward and backward for one token: six for every weight that it is multiplied with.

    The lookup of embeddings multiplies nothing; a head that shares their weights does. Attention between tokens
    is left out, as it depends on how long documents are, so utilisation is told rather too low.
    """
    lookup = next(model.get_input_embeddings().parameters())
    weights = sum(_size(parameter) for parameter in model.parameters() if len(_shape(parameter)) > 1)
    return 6.0 * (weights if model.config.tie_word_embeddings else weights - _size(lookup))


def _shape(parameter: nn.Parameter) -> torch.Size:
    """Also of a weight of which ZeRO 3 has left a part here."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _size(parameter: nn.Parameter) -> int:
    return math.prod(_shape(parameter))


def peak_flops(device: str, half: bool = True) -> float:
    """Operations a second of a large matrix product on `cpu` or `cuda`: the best of some tries."""
    size = SIZE[device]
    dtype = torch.bfloat16 if device == "cuda" and half else torch.float32
    factor = torch.full((size, size), 0.5, device=device, dtype=dtype)
    best = float("inf")
    with torch.no_grad(), half_precision(half):
        for _ in range(TRIES):
            started = time.perf_counter()
            product = factor @ factor
            if device == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - started)
    assert product.shape == factor.shape
    return 2 * size**3 / best
