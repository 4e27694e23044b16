"""Continual pre-training and instruction tuning: the paper's recipe on packed rows.

AdamW (or Muon), warm-up and cosine to zero, loss on the assistant's tokens. Against the released recipe there
is no padding, and the loss of every task and language is logged. A killed run continues from its last
checkpoint. A step whose loss or gradient is not finite is left out, told of and counted; some in a row end the
training.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, TrainingArguments

from cslm.packing import PackedRows
from cslm.training.attention import check_attention
from cslm.training.callbacks import Checkpoints, Progress, Rehearsal
from cslm.training.checkpoints import agreed
from cslm.training.loss import PackedLoss
from cslm.training.preemption import Preempted, asked_to_end
from cslm.training.processor import kernels_for_processor
from cslm.training.sharing import Shares, shares
from cslm.training.speed import flops_per_token, peak_flops
from cslm.training.steps import LossNotFinite, PackedTrainer
from cslm.training.zero import deepspeed_config, single_rank

REHEARSED = {"cuda"}
"""Where the largest micro batch is tried before the first step. On a processor it would tell nothing: a program
that takes too much memory is ended there without a word."""


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how fast to train; the names are those of params.yaml."""

    learning_rate: float
    epochs: float
    max_steps: int | None
    batch_tokens: int
    micro_batch_tokens: int | None
    warmup: float
    weight_decay: float
    checkpoint_minutes: float
    optimizer: str
    zero_stage: int
    offload: str | None
    speech_loss: float
    half_precision: bool
    gradient_checkpointing: bool
    attn_implementation: str
    seed: int


@dataclass(frozen=True)
class Trained:
    """What a training did, the parts before an interruption included."""

    steps: int
    step_tokens: int
    used: float
    """Utilisation of the machine by one token a second (`cslm.training.speed`)."""
    log: list[dict[str, float]]
    """In order: `step`, and since the entry before `loss`, `loss.TASK.LANGUAGE`, `skipped_steps`,
    `tokens_per_second`."""

    def figures(self) -> dict[str, float]:
        """Loss and speed over all steps."""
        steps = [b - a for a, b in itertools.pairwise([0.0, *(entry["step"] for entry in self.log)])]
        losses = sum(n * entry["loss"] for n, entry in zip(steps, self.log, strict=True))
        seconds = sum(
            n * self.step_tokens / entry["tokens_per_second"] for n, entry in zip(steps, self.log, strict=True)
        )
        speed = sum(steps) * self.step_tokens / seconds
        return {
            "loss": losses / sum(steps),
            "steps": self.steps,
            "skipped_steps": sum(entry["skipped_steps"] for entry in self.log),
            "tokens": self.steps * self.step_tokens,
            "tokens_per_second": speed,
            "mfu": speed * self.used,
            "seconds": seconds,
        }


def train(
    model: PreTrainedModel,
    rows: PackedRows,
    config: TrainingConfig,
    checkpoints: Path,
    on_log: Callable[[int, dict[str, float]], None],
    speech_tokens: Sequence[int] = (),
) -> Trained:
    """Train `model` in place.

    Args:
        checkpoints: folder of this training's checkpoints; whole ones there are continued from, whatever the
            number of ranks that wrote them.
        on_log: called with (step, numbers) on rank 0.
        speech_tokens: tokens whose loss counts `config.speech_loss` times.

    Raises:
        OutOfMemory: a micro batch is too large for the memory of a GPU.
        LossNotFinite: `HOPELESS` steps in a row had no finite loss or gradient.
        OtherRanks: the checkpoint was written by another number of ranks, and cannot be made to fit these.
        Preempted: SIGTERM came, and the checkpoint is written.
        ValueError: a step's rows cannot be shared among the ranks, or there is no such attention here.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    shared = shares_of_step(config, rows, world)
    batch = shared.step_rows
    steps = max(1.0, len(rows) * config.epochs / batch)
    steps = round(min(steps, config.max_steps or steps))
    on_processor = not torch.cuda.is_available()
    device = "cpu" if on_processor else "cuda"
    used = flops_per_token(model) / peak_flops(device, config.half_precision) / world
    check_attention(config.attn_implementation)
    if not on_processor:
        model.set_attn_implementation(config.attn_implementation)
    with (
        single_rank(),
        kernels_for_processor(model, config.half_precision) if on_processor else nullcontext(),
        asked_to_end() as ending,
    ):
        saving = Checkpoints(config.checkpoint_minutes, ending)
        arguments = TrainingArguments(
            output_dir=str(checkpoints),
            per_device_train_batch_size=shared.rows,
            gradient_accumulation_steps=shared.micro_batches,
            max_steps=steps,
            learning_rate=config.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=round(config.warmup * steps),
            weight_decay=config.weight_decay,
            max_grad_norm=1.0,
            seed=config.seed,
            ignore_data_skip=True,  # `RowOrder` begins at the step that is next
            logging_steps=max(1, min(10, steps // 10)),
            save_strategy="no",
            save_total_limit=3,  # two and the best
            report_to=[],
            remove_unused_columns=False,
            disable_tqdm=True,
            use_cpu=on_processor,
            bf16=config.half_precision and not on_processor,
            gradient_checkpointing=config.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            deepspeed=deepspeed_config(config.zero_stage, config.offload),
        )
        rehearsal = Rehearsal(lambda: trainer.rehearse(rows.manifest.heaviest_row, shared.rows))
        trainer = PackedTrainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            callbacks=[
                *([rehearsal] if device in REHEARSED else []),
                Progress(on_log, batch * rows.manifest.length, used),
            ],
            saving=saving,
            packed_loss=PackedLoss(
                model.config.vocab_size, speech_tokens, config.speech_loss, rows.manifest.tasks
            ),
            muon=config.optimizer == "muon",
        )
        begun, universal = agreed(checkpoints)
        if universal:
            arguments.hf_deepspeed_config.config["checkpoint"] = {"load_universal": True}
        trainer.train(resume_from_checkpoint=begun)
        if saving.preempted:
            raise Preempted(
                f"it was told to end (SIGTERM), and did after step {trainer.state.global_step} of {steps}: the "
                "same command goes on from its last checkpoint"
            )
    log = [entry for entry in trainer.state.log_history if "tokens_per_second" in entry]
    if not log:
        raise LossNotFinite(f"none of {steps} steps had a finite loss; their batches are in {checkpoints}")
    log[-1]["skipped_steps"] += trainer.not_logged()
    return Trained(steps, batch * rows.manifest.length, used, log)


def shares_of_step(config: TrainingConfig, rows: PackedRows, ranks: int) -> Shares:
    """How so many ranks share the rows of a step, which are all that there are if those are fewer.

    Raises:
        ValueError: they cannot.
    """
    length, micro = rows.manifest.length, config.micro_batch_tokens
    return shares(config.batch_tokens, length, ranks, micro, most=len(rows))
