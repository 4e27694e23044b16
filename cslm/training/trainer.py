"""Continual pre-training and instruction tuning: the paper's recipe on packed rows.

AdamW (or Muon), warm-up and cosine to zero, loss on the assistant's tokens. Against the released recipe there
is no padding, and the loss of every task and language is logged. A killed run continues from its last
checkpoint. A step whose loss is not a number is left out, told of and counted; some in a row end the training.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from cslm.optimizer import MuonAdamW
from cslm.packing import LISTENING, PackedRows
from cslm.sequences import IGNORE
from cslm.training.callbacks import Checkpoints, Progress
from cslm.training.preemption import Preempted, asked_to_end
from cslm.training.processor import kernels_for_processor
from cslm.training.speed import flops_per_token, peak_flops

WHOLE = "whole"
"""A file that marks a checkpoint as completely written."""
LISTENING_SCALE = 12.0
"""Cosines times this are logits (NormFace, arXiv 1704.06369): alone they are too close together for a softmax.
The greater it is, the smaller are the cosines that it is content with (benchmarks/log.md)."""
HOPELESS = 5
"""So many steps in a row without a finite loss end a training."""
ALIKE = 0.8
"""The state of a word that is read is asked no more once its cosine to its own embedding is this high: the rest
of it is left for the words before."""


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how fast to train; the names are those of params.yaml."""

    learning_rate: float
    epochs: float
    max_steps: int | None
    batch_tokens: int
    warmup: float
    weight_decay: float
    checkpoint_minutes: float
    optimizer: str
    zero_stage: int
    speech_loss: float
    half_precision: bool
    gradient_checkpointing: bool
    seed: int


class LossNotFinite(RuntimeError):
    """Several steps in a row had no finite loss; the message says where their batches are."""


class _StepNotFinite(Exception):
    """The loss of this step is not finite, on this rank or another one."""


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
        checkpoints: folder of this training's checkpoints; whole ones there are continued from.
        on_log: called with (step, numbers) on rank 0.
        speech_tokens: tokens whose loss counts `config.speech_loss` times.

    Raises:
        LossNotFinite: `HOPELESS` steps in a row had no finite loss.
        Preempted: SIGTERM came, and the checkpoint is written.
        ValueError: a step's rows cannot be shared among the ranks.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    batch = rows_of_step(config, rows, world)
    steps = max(1.0, len(rows) * config.epochs / batch)
    steps = round(min(steps, config.max_steps or steps))
    on_processor = not torch.cuda.is_available()
    used = flops_per_token(model) / peak_flops("cpu" if on_processor else "cuda", config.half_precision) / world
    with (
        single_rank(),
        kernels_for_processor(model, config.half_precision) if on_processor else nullcontext(),
        asked_to_end() as ending,
    ):
        saving = Checkpoints(config.checkpoint_minutes, ending)
        arguments = TrainingArguments(
            output_dir=str(checkpoints),
            per_device_train_batch_size=batch // world,
            max_steps=steps,
            learning_rate=config.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=round(config.warmup * steps),
            weight_decay=config.weight_decay,
            max_grad_norm=1.0,
            seed=config.seed,
            logging_steps=max(1, min(10, steps // 10)),
            save_strategy="no",
            save_total_limit=2,
            report_to=[],
            remove_unused_columns=False,
            disable_tqdm=True,
            use_cpu=on_processor,
            bf16=config.half_precision and not on_processor,
            gradient_checkpointing=config.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            deepspeed=deepspeed_config(config.zero_stage),
            dataloader_drop_last=len(rows) >= batch,
        )
        trainer = PackedTrainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            callbacks=[Progress(on_log, batch * rows.manifest.length, used)],
            saving=saving,
            speech=speech_mask(model.config.vocab_size, speech_tokens),
            speech_loss=config.speech_loss,
            muon=config.optimizer == "muon",
        )
        trainer.train(resume_from_checkpoint=_agreed(checkpoints))
        if saving.preempted:
            raise Preempted(
                f"it was told to end (SIGTERM), and did after step {trainer.state.global_step} of {steps}: the "
                "same command goes on from there"
            )
    log = [entry for entry in trainer.state.log_history if "tokens_per_second" in entry]
    if not log:
        raise LossNotFinite(f"none of {steps} steps had a finite loss; their batches are in {checkpoints}")
    log[-1]["skipped_steps"] += trainer.not_logged()
    return Trained(steps, batch * rows.manifest.length, used, log)


def rows_of_step(config: TrainingConfig, rows: PackedRows, ranks: int) -> int:
    """How many rows make a step, over all ranks.

    Raises:
        ValueError: they cannot be shared among the ranks.
    """
    batch = max(1, config.batch_tokens // rows.manifest.length)
    if batch % ranks:
        raise ValueError(
            f"batch_tokens {config.batch_tokens} are {batch} rows of {rows.manifest.length}, which {ranks} "
            "ranks cannot share: each needs as many"
        )
    return batch


def _agreed(checkpoints: Path) -> str | None:
    """The checkpoint from which all ranks go on: rank 0 looks, and removes what is half written."""
    found = [last_whole_checkpoint(checkpoints) if torch.distributed.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(found)
    return found[0]


def speech_mask(vocabulary: int, speech_tokens: Sequence[int]) -> Tensor:
    """Which tokens are speech (vocabulary,)."""
    mask = torch.zeros(vocabulary, dtype=torch.bool)
    mask[list(speech_tokens)] = True
    return mask


def deepspeed_config(zero_stage: int) -> dict[str, Any]:
    """DeepSpeed's settings; `auto` values follow the Trainer's."""
    return {
        "zero_optimization": {
            "stage": zero_stage,
            "stage3_gather_16bit_weights_on_model_save": True,
            "stage3_param_persistence_threshold": "auto",
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "bf16": {"enabled": "auto"},
    }


def gathered(*weights: nn.Parameter) -> AbstractContextManager[None]:
    """The whole of weights that ZeRO 3 shares among the ranks; all ranks must ask for them."""
    from deepspeed.runtime.zero import GatheredParameters  # looks at the machine when it is imported

    return GatheredParameters(list(weights))  # type: ignore[no-any-return, no-untyped-call]


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; half-written ones are removed."""
    for path in folder.glob("checkpoint-*"):
        if not (path / WHOLE).exists():
            shutil.rmtree(path)
    last: str | None = get_last_checkpoint(str(folder)) if folder.exists() else None  # type: ignore[no-untyped-call]
    return last


class PackedTrainer(Trainer):
    """A Trainer that weighs the loss of each token, and logs the (unweighted) loss of each task."""

    def __init__(
        self, speech: Tensor, speech_loss: float, muon: bool, saving: Checkpoints, **options: Any
    ) -> None:
        super().__init__(callbacks=[*options.pop("callbacks"), saving], **options)
        self._speech, self._muon = speech, muon
        self._weights = torch.where(speech, speech_loss, 1.0)
        assert isinstance(self.train_dataset, PackedRows)
        self._tasks = self.train_dataset.manifest.tasks
        self._sums = torch.zeros(len(self._tasks), 2)
        self._saving = saving
        self._done = self._left_out = self._in_a_row = self._skipped = 0
        listening = [f"{LISTENING}.{name.rpartition('.')[-1]}" for name in self._tasks]
        self._listening = torch.tensor([self._tasks.index(n) if n in self._tasks else 0 for n in listening])

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW, or Muon beside it."""
        if not self._muon:
            return super().create_optimizer(model)
        network = model if model is not None else self.model
        assert network is not None
        self.optimizer = MuonAdamW(network, self.args.learning_rate, self.args.weight_decay)
        return self.optimizer

    def training_step(
        self, model: Any, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One step, left out if its loss is not finite.

        Raises:
            LossNotFinite: too many in a row.
        """
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[arg-type]
        except _StepNotFinite as error:
            self._skip(inputs, str(error))
            return torch.zeros((), device=self.args.device)
        self._done, self._in_a_row, self._saving.healthy = self._done + 1, 0, True
        return loss

    def _skip(self, inputs: dict[str, Tensor], why: str) -> None:
        assert self.args.output_dir is not None
        step, folder = self.state.global_step + 1, Path(self.args.output_dir)
        path = folder / f"skipped-step-{step}-rank-{self.args.process_index}.safetensors"
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file({name: each.cpu().contiguous() for name, each in inputs.items()}, partial)
        partial.rename(path)
        self._left_out, self._in_a_row, self._saving.healthy = self._left_out + 1, self._in_a_row + 1, False
        print(f"note: step {step} was left out: {why}; its batch is {path}", flush=True)
        if self._in_a_row == HOPELESS:
            raise LossNotFinite(
                f"{HOPELESS} steps in a row, the last one {step}, had no finite loss. Their batches are "
                f"{folder}/skipped-step-*: look for what is wrong with them, or take a smaller learning_rate"
            )

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Weighted mean cross-entropy over labelled tokens; keeps the sum of each task for the log.

        Rows are laid end to end, as positions tell where documents begin, and only labelled tokens get logits.
        What the user's units and words mean is read from the middle of the network, not from its end: the
        layers behind can then look it up when they write. It is read by cosine to the words' embeddings, which
        do not move for it: so speech and text that say the same lie together (`LISTENING_SCALE`, `ALIKE`).
        """
        tokens = inputs["input_ids"].flatten()  # (T,)
        targets = inputs["labels"].flatten().roll(-1)  # a row's first token has no label
        tasks, understood = inputs["task"].flatten().cpu(), inputs["understood"].flatten()
        written = (targets != IGNORE).nonzero().flatten()
        heard = (understood != IGNORE).nonzero().flatten()
        outputs = model(
            input_ids=tokens[None],
            position_ids=inputs["position_ids"].flatten()[None],
            use_cache=False,
            output_hidden_states=bool(len(heard)),
            logits_to_keep=written,
        )
        logits = outputs.logits[0].float()  # (len(written), V)
        targets = torch.cat([targets[written], understood[heard]])
        weights = self._weights.to(targets.device)[targets]
        asked = torch.ones_like(weights)
        head = self.accelerator.unwrap_model(model).lm_head.weight
        with gathered(head):
            words = F.normalize(head.detach().float(), dim=-1) if len(heard) else None
        if words is not None:
            states = outputs.hidden_states[len(outputs.hidden_states) // 2][0, heard]
            cosines = F.normalize(states.float(), dim=-1) @ words.T
            logits = torch.cat([logits, LISTENING_SCALE * cosines])
            own = cosines.detach().gather(1, understood[heard, None])[:, 0]
            read = ~self._speech.to(tokens.device)[tokens[heard]]
            asked[len(written) :][read & (own > ALIKE)] = 0
        tasks = torch.cat([tasks.roll(-1)[written.cpu()], self._listening[tasks[heard.cpu()]]])
        losses = F.cross_entropy(logits, targets, reduction="none")
        # Ranks take the mean of their gradients: so each divides by the mean of all ranks' weights.
        total = weights.sum()
        torch.distributed.all_reduce(total)
        loss = (losses * weights * asked).sum() * self.args.world_size / total.clamp_min(1e-9)
        self._must_be_finite(loss.detach())
        self._sums[:, 0].index_add_(0, tasks, losses.detach().cpu())
        self._sums[:, 1].index_add_(0, tasks, torch.ones(len(tasks)))
        return (loss, outputs) if return_outputs else loss

    def not_logged(self) -> int:
        """Steps that were left out since the last entry with a loss."""
        return self._skipped + self._left_out

    def _must_be_finite(self, loss: Tensor) -> None:
        """All ranks leave a step out, or none."""
        broken = (~loss.isfinite()).float()
        torch.distributed.all_reduce(broken, torch.distributed.ReduceOp.MAX)
        if broken:
            mine = "another rank's loss is not finite" if loss.isfinite() else f"its loss is {loss.item()}"
            raise _StepNotFinite(mine)

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        """Adds `loss.TASK.LANGUAGE` and `skipped_steps` since the last log; no loss if all were left out."""
        if "loss" in logs:
            done, left_out = self._done, self._left_out
            self._skipped, self._done, self._left_out = self._skipped + left_out, 0, 0
            if done:
                logs["loss"] *= (done + left_out) / done
                logs["skipped_steps"], self._skipped = self._skipped, 0
            else:
                del logs["loss"]
        if "loss" in logs:
            sums = self._sums.to(self.args.device)
            torch.distributed.all_reduce(sums)
            self._sums.copy_(sums)
            for name, (total, count) in zip(self._tasks, self._sums.tolist(), strict=True):
                if count:
                    logs[f"loss.{name}"] = total / count
            self._sums.zero_()
        super().log(logs, *args, **options)


@contextmanager
def single_rank() -> Iterator[None]:
    """Let DeepSpeed run in this process alone, if no launcher has started it.

    The process group keeps its keys in memory, so no port is opened; and what the libraries write into the
    environment is taken back, so that a program started later does not believe it belongs to this group.
    """
    if "RANK" in os.environ:
        yield
        return
    if not torch.distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    before = dict(os.environ)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
