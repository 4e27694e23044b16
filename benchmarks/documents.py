"""The documents of packed rows, as a training without packing has them; the same ones packed anew."""

from __future__ import annotations

import random
from collections.abc import Sequence as SequenceOf
from pathlib import Path

import torch

from cslm.packing import PackedRows, pack
from cslm.sequences import IGNORE, Sequence
from cslm.training import TrainingConfig

LENGTH = 512
ROWS_PER_STEP = 4
HELD_OUT = 100


def split(rows: PackedRows, steps: int, seed: int) -> tuple[list[Sequence], list[Sequence]]:
    """Random documents: about as many as `steps` steps train on, and others to measure the loss with."""
    found = _documents(rows)
    random.Random(seed).shuffle(found)
    held_out, rest, tokens = found[:HELD_OUT], found[HELD_OUT:], 0
    for count, document in enumerate(rest):
        tokens += len(document.input_ids)
        if tokens > steps * ROWS_PER_STEP * LENGTH:
            return rest[:count], held_out
    return rest, held_out


def packed(documents: SequenceOf[Sequence], folder: Path, seed: int) -> PackedRows:
    """Rows of these documents, with the labels of the paper alone (none in the user's turn)."""
    pack(iter(documents), folder, LENGTH, 0, seed)
    return PackedRows(folder)


def plain_recipe(steps: int, learning_rate: float, seed: int) -> TrainingConfig:
    """The paper's recipe on so many steps of packed rows: AdamW, each labelled token counts alike."""
    return TrainingConfig(
        learning_rate=learning_rate,
        epochs=1.0,
        max_steps=steps,
        batch_tokens=ROWS_PER_STEP * LENGTH,
        warmup=0.03,
        weight_decay=0.0,
        checkpoint_minutes=1e9,
        optimizer="adamw",
        zero_stage=0,
        offload=None,
        speech_loss=1.0,
        half_precision=True,
        micro_batch_tokens=None,
        gradient_checkpointing=False,
        attn_implementation="sdpa",
        seed=seed,
    )


def _documents(rows: PackedRows) -> list[Sequence]:
    """All of them, in order; the padding at the end of a row, which nothing is learned from, is none."""
    found: list[Sequence] = []
    for number in range(len(rows)):
        row = rows[number]
        starts = (row["position_ids"] == 0).nonzero().flatten().tolist()
        for first, end in zip(starts, [*starts[1:], len(row["input_ids"])], strict=True):
            labels = row["labels"][first:end]
            if bool(torch.any(labels != IGNORE)):
                found.append(Sequence(row["input_ids"][first:end].tolist(), labels.tolist(), "all", "en"))
    return found
