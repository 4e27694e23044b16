"""Steps of a training, of one micro batch or several, and what becomes of one whose loss or gradient is not a
number: the whole of it is left out on all ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer

from cslm.optimizer import MuonAdamW
from cslm.packing import PackedRows
from cslm.training.callbacks import Checkpoints
from cslm.training.gradients import norm_of_gradients
from cslm.training.loss import PackedLoss
from cslm.training.order import ReadAhead, RowOrder
from cslm.training.zero import forget_gradients, summed_over_ranks

AHEAD = 4
"""Micro batches that a rank reads before their turn, at least: those of the next step."""
HOPELESS = 5
"""So many steps in a row without a finite loss and gradient end a training."""


class LossNotFinite(RuntimeError):
    """Several steps in a row had no finite loss or gradient; the message says where their batches are."""


class OutOfMemory(RuntimeError):
    """A micro batch does not fit into the memory of a GPU; the message says what to change."""


class PackedTrainer(Trainer):
    """A Trainer that weighs the loss of each token, and logs the (unweighted) loss of each task."""

    loss_is_scaled_for_ga = True

    def __init__(self, packed_loss: PackedLoss, muon: bool, saving: Checkpoints, **options: Any) -> None:
        super().__init__(callbacks=[*options.pop("callbacks"), saving], **options)
        self._loss, self._muon, self._saving = packed_loss, muon, saving
        assert isinstance(self.train_dataset, PackedRows)
        self._tasks = self.train_dataset.manifest.tasks
        self._sums = torch.zeros(len(self._tasks), 2)
        self._done = self._left_out = self._in_a_row = self._skipped = 0
        self._broken, self._step_loss = False, torch.zeros((), device=self.args.device)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW, or Muon beside it."""
        if not self._muon:
            return super().create_optimizer(model)
        network = model if model is not None else self.model
        assert network is not None
        self.optimizer = MuonAdamW(network, self.args.learning_rate, self.args.weight_decay)
        return self.optimizer

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Micro batches of this rank, from the step on that is next."""
        rows: Any = self.train_dataset
        order = RowOrder(
            len(rows),
            self.get_total_train_batch_size(self.args),
            self.args.seed,
            lambda: self.state.global_step,
        )
        loader: DataLoader[Any] = DataLoader(
            rows,
            batch_sampler=ReadAhead(
                order,
                self.args.train_batch_size,
                rows.read_soon,
                self.args.process_index,
                self.args.world_size,
                max(AHEAD, self.args.gradient_accumulation_steps),
            ),
            collate_fn=self.data_collator,
            generator=torch.Generator(),  # one of its own: the training's has to stay as the checkpoint left it
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The batches of one step, and the weight of their tokens over all ranks, which the loss divides by."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        total = self._loss.weight(batches).to(device)
        torch.distributed.all_reduce(total)
        return batches, total

    def training_step(
        self, model: Any, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One micro batch; if its loss or its gradient is not finite, its step is left out.

        Raises:
            LossNotFinite: too many in a row.
            OutOfMemory: it is too large.
        """
        assert isinstance(num_items_in_batch, Tensor)
        last = self.accelerator.sync_gradients
        loss = torch.zeros((), device=self.args.device)
        if not self._broken:
            loss, norm = self._backward(model, inputs, num_items_in_batch, last)
            self._broken = not _finite_on_all_ranks(loss, norm)
            if self._broken:
                forget_gradients(model)
                self._loss.take_sums()
                self._skip(inputs, _what_is_wrong(loss, norm))
                loss = -self._step_loss  # as if the step had begun with nothing
            self._step_loss += loss
        if last:
            if not self._broken:
                with self._explained(inputs):
                    model.step()
                self._sums += self._loss.take_sums()
                self._done, self._in_a_row, self._saving.healthy = self._done + 1, 0, True
            self._broken, self._step_loss = False, torch.zeros((), device=self.args.device)
        return loss

    def rehearse(self, row: int, rows: int) -> None:
        """Forward and backward of a micro batch of `rows` times this row, of which nothing stays.

        With the row that needs the most memory it is known before the first step whether all others fit.

        Raises:
            OutOfMemory: it does not.
        """
        assert isinstance(self.train_dataset, PackedRows)
        batch = self.data_collator([self.train_dataset[row]] * rows)
        device = self.args.device
        engine: Any = self.model_wrapped
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            self._backward(engine, batch, torch.ones((), device=device), last=True)
        forget_gradients(engine)
        self._loss.take_sums()

    def _backward(
        self, engine: Any, inputs: dict[str, Tensor], weight: Tensor, last: bool
    ) -> tuple[Tensor, Tensor]:
        """Add the gradients of a micro batch, the last one of its step or not; its loss, and a norm of them."""
        engine.train()
        batch = self._prepare_inputs(inputs)
        with self._explained(batch), norm_of_gradients(engine.parameters(), self.args.device) as norm:
            with self.compute_loss_context_manager():
                loss = self.compute_loss(engine, batch, num_items_in_batch=weight)
            engine.set_gradient_accumulation_boundary(last)
            with summed_over_ranks(engine, self.args.world_size):
                engine.backward(loss, scale_wrt_gas=False)
        return loss.detach(), norm

    @contextmanager
    def _explained(self, batch: dict[str, Tensor]) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            rows, length = batch["input_ids"].shape
            fewer = f"micro_batch_tokens {length} (one row) to {(rows - 1) * length}, " if rows > 1 else ""
            raise OutOfMemory(
                f"a micro batch of {rows * length} tokens needs more memory than {self.args.device} has: give "
                f"{fewer}gradient_checkpointing: true, a greater zero_stage, offload, more ranks or shorter "
                f"rows (compose.length); `python -m cslm.plan` says what fits. It was: {error}"
            ) from error

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
            best = self.state.best_model_checkpoint
            back = (
                f"; its best checkpoint is {best} (remove those after it to go on from there)" if best else ""
            )
            raise LossNotFinite(
                f"{HOPELESS} steps in a row, the last one {step}, had no finite loss or gradient. Their "
                f"batches are {folder}/skipped-step-*: look for what is wrong with them, or take a smaller "
                f"learning_rate{back}"
            )

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This micro batch's part of the step's weighted mean.

        Ranks take the mean of their gradients, so each counts for as many as there are.
        """
        assert isinstance(num_items_in_batch, Tensor)
        losses, outputs = self._loss(model, inputs, self.accelerator.unwrap_model(model))
        loss = losses * self.args.world_size / num_items_in_batch.clamp_min(1e-9)
        return (loss, outputs) if return_outputs else loss

    def not_logged(self) -> int:
        """Steps that were left out since the last entry with a loss."""
        return self._skipped + self._left_out

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


def _finite_on_all_ranks(*numbers: Tensor) -> bool:
    """All ranks leave a step out, or none."""
    broken = (~torch.stack(numbers).isfinite()).any().float()
    torch.distributed.all_reduce(broken, torch.distributed.ReduceOp.MAX)
    return not broken


def _what_is_wrong(loss: Tensor, norm: Tensor) -> str:
    for name, number in (("loss", loss), ("gradient", norm)):
        if not number.isfinite():
            return f"its {name} is {number.item()}"
    return "another rank's loss or gradient is not finite"
