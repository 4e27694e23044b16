"""The machines of a training, which share a volume: node 0 begins it, and the others join in.

torchrun's variables say who is who; Kubeflow Trainer sets them on every node of a TrainJob.

    PET_NNODES=3  PET_NODE_RANK=0..2  PET_MASTER_ADDR, PET_MASTER_PORT: where rank 0 listens
    CSLM_JOB      the file by which node 0 tells the others, on the volume, that there is something to train
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

FILE = "CSLM_JOB"
LOOK_S = 1.0


class BadNodes(ValueError):
    """The variables do not say which node this is, or the ranks cannot be shared among the nodes."""


@dataclass(frozen=True)
class Nodes:
    """How many there are, which one this is, and where rank 0 listens; by default this machine alone."""

    count: int = 1
    rank: int = 0
    address: str = "127.0.0.1"
    port: int | None = None
    """None: any that is free."""
    file: Path | None = None

    @classmethod
    def here(cls) -> Nodes:
        """By the variables of this process.

        Raises:
            BadNodes: there are several nodes, and a variable is missing or no number.
        """
        try:
            if int(os.environ.get("PET_NNODES", "1")) == 1:
                return cls()
            return cls(
                int(os.environ["PET_NNODES"]),
                int(os.environ["PET_NODE_RANK"]),
                os.environ["PET_MASTER_ADDR"],
                int(os.environ["PET_MASTER_PORT"]),
                Path(os.environ[FILE]),
            )
        except (KeyError, ValueError) as error:
            raise BadNodes(
                "several nodes (PET_NNODES) need PET_NODE_RANK, PET_MASTER_ADDR, PET_MASTER_PORT and "
                f"{FILE} too, as the runner of a cluster sets them: {error!r}"
            ) from error

    def ranks(self, of: int) -> range:
        """Which of so many ranks work on this node.

        Raises:
            BadNodes: some nodes would have more than others.
        """
        if of % self.count:
            raise BadNodes(
                f"{of} ranks cannot be shared among {self.count} nodes (CSLM_NODES): each needs as many"
            )
        mine = of // self.count
        return range(self.rank * mine, (self.rank + 1) * mine)

    def call(self, ranks: int, job: Path) -> None:
        """Tell the other nodes of a job for so many ranks."""
        if self.file is not None:
            partial = self.file.with_suffix(".partial")
            partial.write_text(json.dumps({"ranks": ranks, "job": str(job.absolute())}), "utf-8")
            partial.rename(self.file)

    def wait(self, until: Path) -> tuple[int, Path] | None:
        """The ranks and the job that node 0 tells of; None if `until` is there first: nothing is to train."""
        assert self.file is not None, "a node alone waits for nobody"
        while not self.file.exists():
            if until.exists():
                return None
            time.sleep(LOOK_S)
        told = json.loads(self.file.read_text("utf-8"))
        return int(told["ranks"]), Path(told["job"])
