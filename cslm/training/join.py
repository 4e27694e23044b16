"""Take part in a training that another node begins: what every node but the first does.

Run:  PET_NNODES=2 PET_NODE_RANK=1 PET_MASTER_ADDR=node-0 PET_MASTER_PORT=29400 CSLM_JOB=/shared/job.json \\
          python -m cslm.training.join /shared/result.json

In the same folder of the same volume as node 0, which does all else: this node waits until there is something
to train, starts its ranks, and ends with them. It ends at once when the file of the argument appears: node 0 is
done, and there was nothing to train.
Exit codes: 0 done, 1 a rank has failed, 75 it was told to end (the checkpoint is written), or the store of rows
does not answer.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cslm.row_store import StoreAway
from cslm.training.nodes import BadNodes, Nodes
from cslm.training.preemption import Preempted
from cslm.training.ranks import PREEMPTED, RanksFailed, join_ranks


def main() -> None:
    """Wait, train, end."""
    try:
        nodes = Nodes.here()
        found = nodes.wait(until=Path(sys.argv[1]))
        if found is None:
            print(f"node {nodes.rank}: there is nothing to train", flush=True)
            return
        ranks, job = found
        print(f"node {nodes.rank} of {nodes.count} trains with {nodes.ranks(ranks)} of {ranks}", flush=True)
        join_ranks(ranks, job, nodes)
    except (BadNodes, RanksFailed) as error:
        sys.exit(str(error))
    except (Preempted, StoreAway) as error:
        print(error, flush=True)
        sys.exit(PREEMPTED)


if __name__ == "__main__":
    main()
