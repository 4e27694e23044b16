"""A training of several ranks: a process each, which all end if one of them dies.

They work on one machine, or on several nodes that share a volume, as many on each (`cslm.training.nodes`).
Every rank takes its share of each step's rows, so a step sees the same rows in the same order as with one rank.
The ranks of a machine stay in the group of the process that starts them, and die with it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from cslm.row_store import RowSource, StoreAway
from cslm.training.checkpoints import fitting
from cslm.training.nodes import Nodes
from cslm.training.preemption import Preempted, asked_to_end
from cslm.training.trainer import Trained, TrainingConfig

LOG = "log: "
JOB, TRAINED = "job.json", "trained.json"
AWAY = "store-away.txt"
"""Beside the job, for all nodes: a rank that has ended because its store of rows does not answer says so."""
PREEMPTED = 75
"""Exit code of a rank that has ended as it was told to (EX_TEMPFAIL: another try may do it)."""
LOOK_S = 0.2


class RanksFailed(RuntimeError):
    """A rank has ended with an error, which it printed."""


@dataclass(frozen=True)
class Job:
    """What all ranks of a training are told."""

    start: Path
    rows: Path
    source: RowSource | None
    """Of the rows, if they are in a store."""
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
        source = RowSource(**content["source"]) if content["source"] else None
        config = TrainingConfig(**content["config"])
        return cls(start, rows, source, checkpoints, result, config, content["speech_tokens"])


def train_on_ranks(
    ranks: int, job: Job, on_log: Callable[[int, dict[str, float]], None]
) -> tuple[PreTrainedModel, Trained]:
    """Do the job with as many processes; the trained model, and what its training did.

    With several nodes this is node 0, whose ranks these are partly; the other ones are called (`join_ranks`).

    Raises:
        BadNodes: the nodes cannot share the ranks.
        OtherRanks: the checkpoint was written by another number of ranks, and cannot be made to fit these.
        RanksFailed: one of them has failed; the others are ended then.
        StoreAway: one of them has failed because its store of rows does not answer.
        Preempted: SIGTERM came to this process or to a rank, and the last checkpoint is whole.
    """
    nodes = Nodes.here()
    mine = nodes.ranks(ranks)
    fitting(job.checkpoints, ranks)
    job.result.mkdir(parents=True)
    path = job.result / JOB
    path.write_text(json.dumps(asdict(job), default=str), "utf-8")
    nodes.call(ranks, path)
    processes: list[subprocess.Popen[str]] = []
    with asked_to_end(lambda: _end(processes)) as told:
        processes += _start(ranks, mine, path, nodes)
        if told():  # while they were started
            _end(processes)
        first = processes[0]
        failed: list[int] = []
        watch = threading.Thread(target=_end_together, args=(processes, failed))
        watch.start()
        try:
            _listen(first, on_log)
        except BaseException:
            for process in processes:
                process.kill()
            raise
        finally:
            watch.join()
    _check(processes, failed, ranks, mine, path.with_name(AWAY))
    trained = Trained(**json.loads((job.result / TRAINED).read_text("utf-8")))
    return AutoModelForCausalLM.from_pretrained(job.result, dtype="float32"), trained


def join_ranks(ranks: int, job: Path, nodes: Nodes) -> None:
    """Do this node's part of a job that node 0 has begun; `job` is the file that it wrote.

    Raises:
        BadNodes: the nodes cannot share the ranks.
        RanksFailed: a rank of this node has failed; its others are ended then.
        StoreAway: one has failed because its store of rows does not answer.
        Preempted: SIGTERM came to this process or to a rank of any node, and the last checkpoint is whole.
    """
    mine = nodes.ranks(ranks)
    processes: list[subprocess.Popen[str]] = []
    failed: list[int] = []
    with asked_to_end(lambda: _end(processes)) as told:
        processes += _start(ranks, mine, job, nodes)
        if told():  # while they were started
            _end(processes)
        _end_together(processes, failed)
    _check(processes, failed, ranks, mine, job.with_name(AWAY))


def _end(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.terminate()


def _check(
    processes: list[subprocess.Popen[str]], failed: list[int], ranks: int, mine: range, away: Path
) -> None:
    """Raise what has happened to the ranks of this machine, if it was not good."""
    if failed and away.exists():
        raise StoreAway(away.read_text("utf-8"))
    ended_at_once = any(
        processes[rank].returncode == -signal.SIGTERM for rank in failed
    )  # outside of its steps
    if failed and not ended_at_once:
        code = processes[failed[0]].returncode
        how = f"was killed by signal {-code}" if code < 0 else "has ended with an error, which stands above"
        raise RanksFailed(f"rank {mine[failed[0]]} of {ranks} {how}")
    if ended_at_once or processes[0].returncode == PREEMPTED:
        raise Preempted("it was told to end (SIGTERM): the same command goes on from its last checkpoint")


def _listen(first: subprocess.Popen[str], on_log: Callable[[int, dict[str, float]], None]) -> None:
    """Until rank 0 ends: pass on what it logs, and print all else."""
    assert first.stdout is not None
    with first.stdout:
        for line in first.stdout:
            if line.startswith(LOG):
                numbers = json.loads(line.removeprefix(LOG))
                on_log(int(numbers.pop("step")), numbers)
            else:
                print(line, end="", flush=True)


def _start(ranks: int, mine: range, job: Path, nodes: Nodes) -> list[subprocess.Popen[str]]:
    """This machine's ranks, with the variables by which torch, accelerate and DeepSpeed find each other."""
    threads = max(1, torch.get_num_threads() // len(mine))  # more would wait for each other
    shared = {
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": nodes.address,
        "MASTER_PORT": str(nodes.port or _free_port()),
        "OMP_NUM_THREADS": str(threads),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-m", "cslm.training", str(job)],
            stdout=subprocess.PIPE if rank == 0 else None,
            text=True,
            errors="replace",
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(local)},
        )
        for local, rank in enumerate(mine)
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_together(processes: list[subprocess.Popen[str]], failed: list[int]) -> None:
    """Wait for all; end the others, which would wait for ever, if one fails (`failed` names it first)."""
    while any(process.poll() is None for process in processes):
        broken = [rank for rank, each in enumerate(processes) if each.poll() not in (None, 0, PREEMPTED)]
        if broken and not failed:
            failed += broken
            for process in processes:
                process.kill()
        time.sleep(LOOK_S)
    failed += [rank for rank, each in enumerate(processes) if each.returncode not in (0, PREEMPTED)]
