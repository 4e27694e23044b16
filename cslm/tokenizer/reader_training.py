"""Trains a recogniser of units with CTC, on the units of transcribed speech.

Spans of units are hidden now and then (as SpecAugment does with sound, arXiv 1904.08779), so that it does not
learn by heart which units its few speakers have.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cslm.loop import Checkpoint, begin_step, on_device
from cslm.optimizer import MuonAdamW
from cslm.tokenizer.ctc import ctc_loss
from cslm.tokenizer.frame_file import FrameFile
from cslm.tokenizer.reader import UnitReader

HIDDEN, LONGEST_HIDDEN = 0.1, 4
"""Share of an utterance's units that are hidden, in spans of at most so many."""
CLIP = 5.0
WEIGHT_DECAY = 1e-2


@dataclass(frozen=True)
class ReaderRecipe:
    """How to train; the names are those of params.yaml."""

    steps: int
    learning_rate: float
    batch_seconds: float
    seed: int


def train_reader(
    reader: UnitReader,
    units: FrameFile,
    recipe: ReaderRecipe,
    checkpoint: Path,
    on_step: Callable[[int, float], None],
) -> None:
    """Muon with warm-up and a cosine to zero; `on_step(step, loss)` after each step.

    The state is written to `checkpoint` every so often, and read from there if it exists (cslm.loop).

    Raises:
        ValueError: no utterance to train on.
    """
    if not units.utterances:
        raise ValueError("no utterance to train on")
    reader.train()
    with on_device(reader) as device:
        optimizer = MuonAdamW(reader, recipe.learning_rate, WEIGHT_DECAY)
        state = Checkpoint(checkpoint, network=reader, optimizer=optimizer)
        first = state.restore()
        batches = itertools.islice(units.batches(recipe.batch_seconds, recipe.seed), first, None)
        for step, batch in zip(range(first, recipe.steps), batches, strict=False):
            rng = begin_step(optimizer, step, recipe.steps, recipe.learning_rate, recipe.seed)
            rows = [
                hide(torch.from_numpy(units.read(utterance)).long(), reader.units, rng) for utterance in batch
            ]
            lengths = torch.tensor([len(row) for row in rows], device=device)
            targets = [torch.tensor([reader.label_ids[name] for name in each.labels]) for each in batch]
            loss = ctc_loss(reader(pad_sequence(rows, batch_first=True).to(device), lengths), lengths, targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(reader.parameters(), CLIP)
            optimizer.step()
            state.after(step + 1)
            on_step(step + 1, loss.item())
    reader.eval()


def hide(frames: Tensor, hidden: int, rng: random.Random) -> Tensor:
    """Units (T,) of which about `HIDDEN` have become `hidden`."""
    for _ in range(round(2 * HIDDEN * len(frames) / (LONGEST_HIDDEN + 1))):
        first = rng.randrange(len(frames))
        frames[first : first + rng.randint(1, LONGEST_HIDDEN)] = hidden
    return frames
