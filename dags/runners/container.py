"""What a container of a stage is told and given, whichever engine runs it."""

from __future__ import annotations

import re

from dags import graph

PASSED = (
    "AWS_",
    "CSLM_",
    "DVC_",
    "HF_",
    "MLFLOW_",
    "MPL",
    "NUMBA_",
    "PG",
    "PYTHON",
    "TORCH_",
    "TRITON_",
    "XDG_",
)
"""Prefixes of the variables that a container gets."""
FILES = ("AWS_CA_BUNDLE", "AWS_SHARED_CREDENTIALS_FILE", "PGPASSFILE", "PGSSLROOTCERT")
"""Variables that name files which a container must be able to read."""
WEBHOOK, JUDGE_KEY, JUDGED = "CSLM_FAILURE_WEBHOOK", "CSLM_JUDGE_API_KEY", "evaluate"
"""Secrets that are Airflow's alone, and those of one stage."""
SECRETS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "PGPASSWORD",
)
"""Variables whose values a pod takes from a Secret, where it has them."""
GRANTED = "CSLM_GRANTED_GPUS"
"""Variable: how many GPUs a container has. A stage that sees fewer does not work (components.stage)."""
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def environment(given: dict[str, str], cpus: int, stage: str, gpus: int = 0) -> dict[str, str]:
    """Variables of a stage's container, out of those that a stage's process gets."""
    secret = {WEBHOOK} if stage == JUDGED else {WEBHOOK, JUDGE_KEY}
    kept = {key: value for key, value in given.items() if key.startswith(PASSED) and key not in secret}
    who = {"HOME": "/tmp", "USER": "cslm", "LOGNAME": "cslm"}  # a user id without a name has none of them
    return kept | who | {"OMP_NUM_THREADS": str(cpus)} | granted(gpus)


def granted(gpus: int) -> dict[str, str]:
    """What a stage is told of its GPUs; nothing where it has none."""
    return {GRANTED: str(gpus)} if gpus else {}


def secrets(stage: str) -> tuple[str, ...]:
    """Variables that a stage's pod takes from a Secret."""
    return (*SECRETS, JUDGE_KEY) if stage == JUDGED else SECRETS


def killed(stage: graph.Stage) -> str:
    """What to say of a stage that was killed."""
    return (
        f"it was killed, most likely because it needs more than its memory, {stage.meta.get('memory')} "
        f"(dvc.yaml, stage {stage.name}, meta)"
    )


def memory_bytes(quantity: str) -> int:
    """`4Gi` -> 4294967296; Kubernetes' notation, as dvc.yaml's `meta` has it.

    Raises:
        ValueError: another notation.
    """
    match = re.fullmatch(r"(\d+)(Ki|Mi|Gi|Ti)", quantity)
    if match is None:
        raise ValueError(f"dvc.yaml: memory {quantity!r}: a whole number and one of {', '.join(UNITS)}, please")
    return int(match.group(1)) * UNITS[match.group(2)]
