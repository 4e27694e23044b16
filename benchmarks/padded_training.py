"""Training on packed rows against the released recipe: the Trainer, padded batches, sequences in random order.

Run:  python -m benchmarks.padded_training --phase pretrain       (or finetune; each about 5 minutes on 2 cores)
      python -m benchmarks.padded_training --steps 4 --turns 1

Both train the same model from the same weights on the same documents in as many steps, in the same precision,
with AdamW and the paper's schedule. The baseline is written from what is known of the recipe (micro-batches of
2, gradients accumulated to the batch, each micro-batch padded to its longest sequence) and has no DeepSpeed to
carry. A second baseline pads the whole batch of a step at once, which takes fewer calls and more padding.
Speed is that of tokens that are not padding; the loss is that of documents that nobody trained on, in 32 bits.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.documents import packed, plain_recipe, split
from benchmarks.inputs import prepared
from benchmarks.results import RESULTS, Measured, record
from cslm.generation import SpeechLanguageModel
from cslm.packing import PackedRows
from cslm.sequences import IGNORE, Sequence
from cslm.training import train

MICRO_BATCH = 2
LEARNING_RATE = {"pretrain": 1.5e-3, "finetune": 3.0e-4}
SPEED_TARGET = {"pretrain": "ratio >= 2.0", "finetune": "ratio >= 1.5"}
NAMES = {"pretrain": "Training, phase 1", "finetune": "Training, phase 2"}


def main(
    phase: Annotated[str, typer.Option(help="pretrain or finetune")] = "pretrain",
    steps: Annotated[int, typer.Option(help="steps of each training")] = 30,
    turns: Annotated[int, typer.Option(help="trainings of each kind")] = 3,
    results: Annotated[Path, typer.Option(help="where to write")] = RESULTS,
) -> None:
    """Measure one phase."""
    if phase not in SPEED_TARGET:
        raise typer.BadParameter(f"{phase!r}: pretrain or finetune")
    inputs = prepared()
    tokenizer = AutoTokenizer.from_pretrained(inputs / "work/backbone")
    model = AutoModelForCausalLM.from_pretrained(inputs / "work/backbone", dtype="float32")
    if phase == "pretrain":  # from random weights, where the loss has far to fall
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            model.config, dtype=torch.float32
        )
    rows = PackedRows(inputs / "work/train" / phase)
    record(compare(phase, model, tokenizer, rows, steps, turns), results)


def compare(
    phase: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: PackedRows,
    steps: int,
    turns: int,
) -> dict[str, Measured]:
    """Speed against both baselines, and the loss after training."""
    speeds: dict[str, list[float]] = {"ours": [], "micro": [], "whole": []}
    losses: dict[str, list[float]] = {"ours": [], "micro": [], "whole": []}
    rate, counted = LEARNING_RATE[phase], 0
    for seed in range(1, turns + 1):
        documents, held_out = split(rows, steps, seed)
        batch = max(1, len(documents) // steps)
        documents = documents[: batch * steps]  # each is seen once by all
        counted = len(documents)
        trained = copy.deepcopy(model)
        speeds["ours"].append(train_packed(trained, documents, steps, rate, seed))
        losses["ours"].append(loss_of(model, trained, tokenizer, held_out))
        for name, micro in (("micro", min(MICRO_BATCH, batch)), ("whole", batch)):
            trained = copy.deepcopy(model)
            speeds[name].append(train_padded(trained, tokenizer, documents, steps, micro, batch, rate, seed))
            losses[name].append(loss_of(model, trained, tokenizer, held_out))
    name = f"training.{phase}"
    in_micro = f"Trainer, padded micro-batches of {MICRO_BATCH}, random order"
    whole = "Trainer, the whole batch of a step padded at once"
    speed = {key: median(values) for key, values in speeds.items()}
    loss = {key: median(values) for key, values in losses.items()}
    return {
        name: Measured(
            NAMES[phase], in_micro, speed["ours"], speed["micro"], "tokens/s", turns, SPEED_TARGET[phase]
        ),
        f"{name}.whole_batch": Measured(NAMES[phase], whole, speed["ours"], speed["whole"], "tokens/s", turns),
        f"{name}.loss": Measured(
            f"{NAMES[phase]}: loss after {steps} steps, {counted} documents",
            in_micro,
            loss["ours"],
            loss["micro"],
            "nats a token",
            turns,
            "ratio <= 1.01",
        ),
    }


def train_packed(
    model: PreTrainedModel, documents: SequenceOf[Sequence], steps: int, rate: float, seed: int
) -> float:
    """Train as the pipeline does; tokens a second that are not padding."""
    with tempfile.TemporaryDirectory() as folder:
        rows = packed(documents, Path(folder) / "rows", seed)
        config = plain_recipe(steps, rate, seed)
        trained = train(model, rows, config, Path(folder) / "checkpoints", lambda step, numbers: None)
    return trained.figures()["tokens_per_second"] * rows.manifest.utilization


class Clock(TrainerCallback):
    """Seconds from the first step to the last."""

    seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self.seconds = -time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Stop."""
        self.seconds += time.perf_counter()


def train_padded(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: SequenceOf[Sequence],
    steps: int,
    micro: int,
    batch: int,
    rate: float,
    seed: int,
) -> float:
    """Train as the released recipe does, `batch` documents a step; tokens a second that are not padding."""
    rows = [{"input_ids": document.input_ids, "labels": document.labels} for document in documents]
    clock = Clock()
    recipe = plain_recipe(steps, rate, seed)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=-(-batch // micro),
            max_steps=steps,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=round(recipe.warmup * steps),
            weight_decay=recipe.weight_decay,
            max_grad_norm=1.0,
            seed=seed,
            use_cpu=not torch.cuda.is_available(),
            bf16=torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported(),
            logging_steps=max(1, min(10, steps // 10)),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,  # type: ignore[arg-type]
            data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORE),
            callbacks=[clock],
        )
        assert not trainer.is_deepspeed_enabled, "of ours, which ran in this process before"
        trainer.train()
    return sum(len(document.input_ids) for document in documents) / clock.seconds


def loss_of(
    model: PreTrainedModel,
    trained: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: SequenceOf[Sequence],
) -> float:
    """Mean loss of the labelled tokens, with trained weights in a model that no Trainer has wrapped."""
    plain = copy.deepcopy(model)
    plain.load_state_dict(trained.state_dict())
    found = SpeechLanguageModel(plain, tokenizer).token_losses(list(documents), batch_size=10)
    return sum(loss for loss, _ in found) / sum(count for _, count in found)


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
