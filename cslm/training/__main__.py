"""One rank of a training of several. `cslm.training.ranks` starts as many of these as there are ranks.

Run:  python -m torch.distributed.run --standalone --nproc-per-node 2 -m cslm.training job.json

The job says which checkpoint to train on which rows, how, and where the result goes. Rank 0 prints a line
`log: {"step": 10, "loss": 2.3, ...}` for every log entry, and writes the result.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from cslm.packing import PackedRows
from cslm.training.ranks import LOG, TRAINED, Job
from cslm.training.trainer import gathered, train


def main() -> None:
    """Take part in the job, whose file is the only argument."""
    job = Job.read(Path(sys.argv[1]))
    # While this lives, a model that is loaded for ZeRO 3 is shared among the ranks from the start.
    shared = {"zero_optimization": {"stage": job.config.zero_stage}, "train_micro_batch_size_per_gpu": 1}
    sharing = HfDeepSpeedConfig(shared)  # type: ignore[no-untyped-call]
    model = AutoModelForCausalLM.from_pretrained(job.start, dtype="float32")

    def tell(step: int, numbers: dict[str, float]) -> None:
        print(f"{LOG}{json.dumps(numbers | {'step': step})}", flush=True)

    trained = train(model, PackedRows(job.rows), job.config, job.checkpoints, tell, job.speech_tokens)
    with gathered(*model.parameters()):
        if os.environ["RANK"] == "0":
            model.save_pretrained(job.result)
            (job.result / TRAINED).write_text(json.dumps(asdict(trained)), "utf-8")
    del sharing
    torch.distributed.barrier()  # a rank that leaves while another one still talks to it would abort that one
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
