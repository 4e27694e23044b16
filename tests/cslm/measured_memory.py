"""Train on random rows, one shape after the other, and print how much memory each took at most.

Run:  python tests/cslm/measured_memory.py shapes.json      (what tests/cslm/test_plan.py does)

In a process of its own: the kernel tells the most memory that a process had, and freed memory has to go back.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from transformers import LlamaConfig, LlamaForCausalLM

from cslm.packing import PackedManifest, PackedRows
from cslm.sequences import IGNORE
from cslm.training import TrainingConfig, train

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}
"""What is trained first, so that libraries have loaded what they load when they are used."""


def measure(shape: dict[str, int], folder: Path) -> int:
    """Bytes that two steps of training took at most, beyond those that were there before."""
    length, batch, document = shape.pop("length"), shape.pop("batch"), shape.pop("document")
    labelled, again = shape.pop("labelled"), bool(shape.pop("checkpointing"))
    config = LlamaConfig(**shape)
    rows = np.zeros((2 * batch, 5, length), np.int32)
    rows[:, 0] = np.random.default_rng(1).integers(0, config.vocab_size, (2 * batch, length))
    rows[:, 1] = rows[:, 4] = IGNORE
    rows[:, 1, -labelled:] = rows[:, 0, -labelled:]
    rows[:, 2] = np.arange(length) % document
    folder.mkdir()
    np.save(folder / "rows-00000.npy", rows)
    manifest = PackedManifest(length, len(rows), rows[:, 0].size, ["asr.en"])
    (folder / "manifest.json").write_text(json.dumps(dataclasses.asdict(manifest)), "utf-8")
    training = TrainingConfig(
        learning_rate=1e-3,
        epochs=1.0,
        max_steps=2,
        batch_tokens=batch * length,
        micro_batch_tokens=None,
        warmup=0.0,
        weight_decay=0.0,
        checkpoint_minutes=1e9,
        optimizer="adamw",
        zero_stage=0,
        offload=None,
        speech_loss=1.0,
        half_precision=False,
        gradient_checkpointing=again,
        attn_implementation="sdpa",
        seed=1,
    )
    gc.collect()  # what is left of the training before would be freed in this one
    Path("/proc/self/clear_refs").write_text("5", "utf-8")  # the most memory begins anew
    before = _status("VmRSS")
    train(
        LlamaForCausalLM(config), PackedRows(folder), training, folder / "checkpoints", lambda step, log: None
    )
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    shapes = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    first = dict.fromkeys(("length", "batch", "document", "labelled"), 8) | {"checkpointing": 0} | SMALL
    with tempfile.TemporaryDirectory() as work:
        measure(first, Path(work) / "first")
        taken = {name: measure(shape, Path(work) / name) for name, shape in shapes.items()}
    print(json.dumps(taken))
