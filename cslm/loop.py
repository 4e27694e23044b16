"""What the trainings of the small networks share: device, learning rate, each step's randomness, checkpoints.

Each step draws its randomness from the seed and its own number, so a continued training equals an
undisturbed one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

WARMUP = 0.08
CHECKPOINT_STEPS = 100


def device() -> str:
    """Where small networks train: `cuda` if there is a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def on_device(*networks: nn.Module) -> Iterator[str]:
    """Networks are on `device()`, which it gives, and in the end on the processor again, where they are used.

    Optimizers have to be made inside, of weights that have moved.
    """
    there = device()
    for network in networks:
        network.to(there)
    try:
        yield there
    finally:
        for network in networks:
            network.to("cpu")


class Checkpoint:
    """The state of a training in one file, written every `CHECKPOINT_STEPS` steps."""

    def __init__(self, path: Path, **parts: Any) -> None:
        self._path, self._parts = path, parts

    def restore(self) -> int:
        """Load the file, if it is there; the step to go on with."""
        if not self._path.exists():
            return 0
        state = torch.load(self._path, "cpu", weights_only=True)  # may come from a GPU; parts know their place
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        return int(state["step"])

    def after(self, step: int) -> None:
        """Call with the number of steps done; the file is whole at any time."""
        if step % CHECKPOINT_STEPS:
            return
        partial = self._path.with_suffix(".partial")
        torch.save({"step": step, **{n: part.state_dict() for n, part in self._parts.items()}}, partial)
        partial.rename(self._path)


def begin_step(
    optimizer: torch.optim.Optimizer, step: int, steps: int, rate: float, seed: int
) -> random.Random:
    """Set the learning rate of `step` and seed torch; gives the step's own random numbers."""
    rng = random.Random(f"{seed}/{step}")
    torch.manual_seed(rng.randrange(2**32))
    for group in optimizer.param_groups:
        group["lr"] = rate * _learning_rate_share(step, steps)
    return rng


def _learning_rate_share(step: int, steps: int) -> float:
    """Linear warm-up, and a cosine from one to zero over all steps."""
    warmup = max(1, round(WARMUP * steps))
    return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)))
