"""A training through Trainer and DeepSpeed against the bare loop in PyTorch: what do all its services cost?

Run:  python -m benchmarks.training_step      (2 minutes on 2 cores)

The bare loop has the same rows, loss, kernels, precision, clipping and AdamW, and nothing else: no scheduler,
no log, no check for a loss that is no number, no loss by task.
"""

from __future__ import annotations

import copy
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.documents import ROWS_PER_STEP, packed, plain_recipe, split
from benchmarks.inputs import prepared
from benchmarks.results import RESULTS, Measured, by_turns, record
from cslm.packing import PackedRows
from cslm.sequences import IGNORE
from cslm.training import train
from cslm.training.processor import kernels_for_processor

LEARNING_RATE = 1e-4


def main(
    steps: Annotated[int, typer.Option(help="steps of each training")] = 30,
    turns: Annotated[int, typer.Option(help="trainings of each kind")] = 5,
    results: Annotated[Path, typer.Option(help="where to write")] = RESULTS,
) -> None:
    """Measure steps of phase 1."""
    inputs = prepared()
    model = AutoModelForCausalLM.from_pretrained(inputs / "work/backbone", dtype="float32")
    record(compare(model, PackedRows(inputs / "work/train/pretrain"), steps, turns), results)


def compare(model: PreTrainedModel, rows: PackedRows, steps: int, turns: int) -> dict[str, Measured]:
    """Tokens a second of both, padding included: the rows are the same."""
    documents, _ = split(rows, steps, seed=1)
    with tempfile.TemporaryDirectory() as scratch:
        same = packed(documents, Path(scratch) / "rows", seed=1)

        def ours(turn: int) -> float:
            config = plain_recipe(steps, LEARNING_RATE, turn)
            folder = Path(scratch) / f"checkpoints-{turn}"
            trained = train(copy.deepcopy(model), same, config, folder, lambda step, numbers: None)
            return trained.figures()["tokens_per_second"]

        speed, baseline = by_turns(ours, lambda turn: bare_loop(copy.deepcopy(model), same, steps, turn), turns)
    against = "forward, backward, clipping and AdamW in a bare PyTorch loop, same rows and kernels"
    return {
        "training.step": Measured("Training step", against, speed, baseline, "tokens/s", turns, "ratio >= 0.90")
    }


def bare_loop(model: PreTrainedModel, rows: PackedRows, steps: int, seed: int) -> float:
    """Train on random rows; tokens a second."""
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.0, fused=True)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    model.train()
    tokens = 0
    with kernels_for_processor(model):
        started = time.perf_counter()
        for step in range(steps):
            batch = [rows[order[(step * ROWS_PER_STEP + i) % len(order)]] for i in range(ROWS_PER_STEP)]
            ids, labels, positions = (
                torch.cat([row[name] for row in batch]) for name in ("input_ids", "labels", "position_ids")
            )
            targets = labels.roll(-1)
            written = (targets != IGNORE).nonzero().flatten()
            logits = model(
                input_ids=ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=written
            ).logits
            F.cross_entropy(logits[0].float(), targets[written]).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            tokens += len(ids)
        return tokens / (time.perf_counter() - started)


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
