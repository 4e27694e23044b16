"""What the Trainer tells the world while it runs, and when it saves."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cslm.training.checkpoints import checkpoint_at, mark_whole


class Rehearsal(TrainerCallback):
    """Calls `rehearse` when everything is ready for the first step, and the clocks do not run yet."""

    def __init__(self, rehearse: Callable[[], None]) -> None:
        self._rehearse = rehearse

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Rehearse."""
        self._rehearse()


class Progress(TrainerCallback):
    """Passes each log entry on, with tokens a second and utilisation, and prints a `progress:` line.

    Args:
        used: utilisation of the machine by one token a second (`cslm.training.speed`).
    """

    def __init__(self, on_log: Callable[[int, dict[str, float]], None], batch_tokens: int, used: float) -> None:
        self._on_log = on_log
        self._batch_tokens, self._used = batch_tokens, used
        self._since = time.monotonic()
        self._last_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the clock."""
        self._since, self._last_step = time.monotonic(), state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """One line, and the numbers for `on_log`."""
        if not logs or "loss" not in logs:
            return
        now = time.monotonic()
        speed = (state.global_step - self._last_step) * self._batch_tokens / (now - self._since)
        self._since, self._last_step = now, state.global_step
        state.log_history[-1]["tokens_per_second"] = speed  # kept in checkpoints
        if not state.is_world_process_zero:
            return
        self._on_log(state.global_step, {**logs, "tokens_per_second": speed, "mfu": speed * self._used})
        done = f"{state.global_step}/{state.max_steps} steps"
        print(f"progress: {done}, loss {logs['loss']:.3f}, {speed / 1000:.1f} k tokens/s", flush=True)


class Checkpoints(TrainerCallback):
    """Saves every so many minutes and when the training must end, and marks a checkpoint once it is whole.

    The newest two are kept, and the best: the one before which, since the checkpoint before it, the loss was
    least. `best_global_step` in their trainer_state.json is its step.

    Args:
        ending: whether the training must end (`cslm.training.preemption`).
    """

    def __init__(self, minutes: float, ending: Callable[[], bool]) -> None:
        self._seconds, self._ending = minutes * 60, ending
        self.preempted = False
        self.healthy = True
        """Whether the last step had a finite loss: only then is the model worth keeping."""
        self._since = time.monotonic()
        self._losses: list[tuple[int, float]] = []
        """Step, and mean loss since the entry before, of what was logged since the last checkpoint."""
        self._begun = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the clock."""
        self._since, self._begun = time.monotonic(), state.global_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask for a checkpoint when it is time by the clock of a rank, or one of them must end."""
        due = time.monotonic() - self._since >= self._seconds
        asked = torch.tensor([due, self._ending()], dtype=torch.int32, device=args.device)
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        if asked.any() and state.global_step < state.max_steps:
            control.should_log = control.should_save = self.healthy  # what was not logged is in no checkpoint
            self.preempted = control.should_training_stop = bool(asked[1])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Is the checkpoint that follows the best one? The Trainer keeps that, whatever its age."""
        if logs and "loss" in logs:
            self._losses.append((state.global_step, logs["loss"]))
        if not (control.should_save and self._losses):
            return
        steps = [b - a for a, b in itertools.pairwise([self._begun, *(step for step, _ in self._losses)])]
        loss = sum(n * loss for n, (_, loss) in zip(steps, self._losses, strict=True)) / sum(steps)
        self._losses, self._begun = [], state.global_step
        if state.best_metric is None or loss < state.best_metric:
            state.best_metric, state.best_global_step = loss, state.global_step
        assert args.output_dir is not None
        assert state.best_global_step is not None
        state.best_model_checkpoint = str(checkpoint_at(args.output_dir, state.best_global_step))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Mark the checkpoint that all ranks have just written."""
        assert args.output_dir is not None
        torch.distributed.barrier()
        if state.is_world_process_zero:
            mark_whole(checkpoint_at(args.output_dir, state.global_step), args.world_size)
        self._since = time.monotonic()
