"""One rank of a training of several; `cslm.training.ranks` starts as many of these as there are ranks.

Run:  RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 python -m cslm.training job.json

The job says which checkpoint to train on which rows, how, and where the result goes. Rank 0 prints a line
`log: {"step": 10, "loss": 2.3, ...}` for every log entry, and writes the result.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import torch
from transformers import AutoModelForCausalLM
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from cslm.packing import PackedRows
from cslm.row_store import RowsLost, StoreAway, StoreRefuses
from cslm.training.preemption import Preempted
from cslm.training.ranks import AWAY, LOG, PREEMPTED, TRAINED, Job
from cslm.training.trainer import train
from cslm.training.zero import gathered, offloaded

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Take part in the job, whose file is the only argument."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # no rank outlives who started it
    job = Job.read(Path(sys.argv[1]))
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    shared = {
        "zero_optimization": {"stage": job.config.zero_stage, **offloaded(job.config.offload)},
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": job.config.half_precision and on_gpu},
    }
    # While this lives, a model that is loaded for ZeRO 3 is shared among the ranks from the start.
    sharing = HfDeepSpeedConfig(shared)  # type: ignore[no-untyped-call]
    model = AutoModelForCausalLM.from_pretrained(job.start, dtype="float32")

    def tell(step: int, numbers: dict[str, float]) -> None:
        print(f"{LOG}{json.dumps(numbers | {'step': step})}", flush=True)

    try:
        rows = PackedRows(job.rows, job.source)
        trained = train(model, rows, job.config, job.checkpoints, tell, job.speech_tokens)
        rows.close()
    except Preempted:
        _leave(PREEMPTED)
    except (RowsLost, StoreRefuses) as error:
        print(error, file=sys.stderr, flush=True)
        if isinstance(error, StoreAway):
            (job.result / AWAY).write_text(str(error), "utf-8")
        os._exit(1)  # the other ranks wait for this one: who has started them ends them
    with gathered(*model.parameters()):
        if os.environ["RANK"] == "0":
            model.save_pretrained(job.result)
            (job.result / TRAINED).write_text(json.dumps(asdict(trained)), "utf-8")
    del sharing
    _leave(0)


def _leave(code: int) -> NoReturn:
    """End together with the other ranks: one that leaves while another still talks to it would abort that one.

    At once, as the libraries' threads for communication now and then abort a process that ends in its own time
    ("terminate called without an active exception"), after all is written.
    """
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
