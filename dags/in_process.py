"""Run the DAG once in this process, as `airflow dags test` does.

Run:  make demo      (which starts  python -m dags.in_process '{"profile": "sample"}'  and draws its progress)

The argument is the run's conf. Exit code 0 if the run succeeded.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
from typing import Any

from airflow.sdk import DagRunState

from dags import interrupted
from dags.cslm_train import cslm_train

PR_SET_PDEATHSIG = 1
"""prctl(2)."""


def main() -> int:
    end_with_parent()
    conf: dict[str, Any] = json.loads(sys.argv[1])
    interrupted.main()
    outcome = cslm_train.test(run_conf=conf)
    return 0 if outcome.state == DagRunState.SUCCESS else 1


def end_with_parent() -> None:
    """Have the kernel end this process when `make demo` is killed: nobody would stop the run, or lock it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
