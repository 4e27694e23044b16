"""DeepSpeed as the Trainer uses it: its settings, what ZeRO shares among the ranks, and a group of one rank."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor


def deepspeed_config(zero_stage: int, offload: str | None) -> dict[str, Any]:
    """DeepSpeed's settings; `auto` values follow the Trainer's.

    Args:
        offload: what lies in the machine's memory: `optimizer` states, `weights` too (stage 3), or None.
    """
    return {
        "zero_optimization": {"stage": zero_stage, **offloaded(offload)}
        | {"stage3_gather_16bit_weights_on_model_save": True, "stage3_param_persistence_threshold": "auto"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "bf16": {"enabled": "auto"},
    }


def offloaded(what: str | None) -> dict[str, Any]:
    """DeepSpeed's settings of what lies in the machine's memory."""
    there = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    names = {None: (), "optimizer": ("offload_optimizer",), "weights": ("offload_optimizer", "offload_param")}
    return dict.fromkeys(names[what], there)


def gathered(*weights: Tensor) -> AbstractContextManager[None]:
    """The whole of weights that ZeRO 3 shares among the ranks; all ranks must ask for them."""
    from deepspeed.runtime.zero import GatheredParameters  # looks at the machine when it is imported

    return GatheredParameters(list(weights))  # type: ignore[no-any-return, no-untyped-call]


def summed_over_ranks(engine: Any, ranks: int) -> AbstractContextManager[None]:
    """Around backward: gradients become those of all ranks, as DeepSpeed does it.

    A rank that is alone has them already, and is spared the copies of them all that DeepSpeed makes; not with
    ZeRO, which needs what is done on the way.
    """
    alone = ranks == 1 and not engine.zero_optimization()
    return engine.no_sync() if alone else nullcontext()  # type: ignore[no-any-return]


def forget_gradients(engine: Any) -> None:
    """Drop what backward has summed since the last step; all ranks must do so.

    DeepSpeed does the same, for its own use, when a step overflows (`step` of its optimizers, 0.19).
    """
    from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID

    engine.zero_grad()
    if not engine.zero_optimization():
        return
    engine.optimizer.zero_grad()  # ZeRO 3 writes over the sums then, instead of adding to them
    if engine.zero_optimization_stage() < 3:
        engine.optimizer.micro_step_id = INITIAL_MICRO_STEP_ID  # of offloaded sums: the next are no addition
        engine.optimizer.local_overflow = False
        for group in engine.optimizer.averaged_gradients:
            engine.optimizer.averaged_gradients[group] = None
        for group in engine.optimizer.all_grad_tensors:
            engine.optimizer.all_grad_tensors[group] = None


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
