"""A training of several ranks on this machine, started by torch's own launcher.

Every rank takes its share of each step's rows, so a step sees the same rows in the same order as with one rank.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from cslm.training.trainer import Trained, TrainingConfig

LOG = "log: "
JOB, TRAINED = "job.json", "trained.json"


class RanksFailed(RuntimeError):
    """A rank has ended with an error, which it printed."""


@dataclass(frozen=True)
class Job:
    """What all ranks of a training are told."""

    start: Path
    rows: Path
    checkpoints: Path
    result: Path
    """A folder that is not there yet."""
    config: TrainingConfig
    speech_tokens: list[int]

    @classmethod
    def read(cls, path: Path) -> Job:
        """From the file that `train_on_ranks` gives to every rank."""
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        start, rows, checkpoints, result = (
            Path(content[name]) for name in ("start", "rows", "checkpoints", "result")
        )
        config = TrainingConfig(**content["config"])
        return cls(start, rows, checkpoints, result, config, content["speech_tokens"])


def train_on_ranks(
    ranks: int, job: Job, on_log: Callable[[int, dict[str, float]], None]
) -> tuple[PreTrainedModel, Trained]:
    """Do the job with as many processes of this machine; the trained model, and what its training did.

    Raises:
        RanksFailed: one of them has failed; the others are ended then.
    """
    job.result.mkdir(parents=True)
    path = job.result / JOB
    path.write_text(json.dumps(asdict(job), default=str), "utf-8")
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m", "cslm.training"]
    threads = {
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // ranks))
    }  # more would wait for each other
    with subprocess.Popen(
        [sys.executable, "-m", *launcher, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
        env=os.environ | threads,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(LOG):
                numbers = json.loads(line.removeprefix(LOG))
                on_log(int(numbers.pop("step")), numbers)
            else:
                print(line, end="", flush=True)
    if process.returncode:
        raise RanksFailed(f"one of {ranks} ranks has ended with an error, which stands above")
    trained = Trained(**json.loads((job.result / TRAINED).read_text("utf-8")))
    return AutoModelForCausalLM.from_pretrained(job.result, dtype="float32"), trained
