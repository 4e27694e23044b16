"""Where the stages of a run work. `CSLM_RUNNER` says which:

    local       a process beside Airflow, in the environment that `make setup` made
    docker      a container of its image (make images), with the cores and memory of dvc.yaml's `meta`
    kubernetes  the same as a pod of a cluster; with CSLM_NODES trainings are TrainJobs of Kubeflow Trainer

Each is a module with `task_of`; what a task does, and what it leaves behind, is the same (`dags.run`).
"""

from __future__ import annotations

import os
from datetime import timedelta
from importlib import import_module
from typing import Any

from dags import graph

RUNNERS = ("local", "docker", "kubernetes")
CORES = os.cpu_count() or 1
CORE_POOL, GPU_POOL = "cslm_cores", "cslm_gpu"
"""Airflow's pools of this machine's cores and of the GPUs (CSLM_GPUS), made by `make up`. Only stages take
their slots, so that a rollback or an answer need not wait for a training."""


STAGE_HOURS = "CSLM_STAGE_HOURS"
A_WEEK = "168"


def task_of(stage: graph.Stage, facts: Any, items: Any = None) -> Any:
    """The Airflow task of a stage; mapped over `items` if the stage has some.

    Raises:
        ValueError: CSLM_RUNNER names no runner.
    """
    module = "train_job" if nodes(stage) > 1 else _runner()
    return import_module(f"dags.runners.{module}").task_of(stage, facts, items)


def _runner() -> str:
    name = os.environ.get("CSLM_RUNNER") or "local"
    if name not in RUNNERS:
        raise ValueError(f"CSLM_RUNNER={name!r} is no runner: choose one of {', '.join(RUNNERS)}")
    return name


def arguments(stage: graph.Stage) -> dict[str, Any]:
    """What every runner's task of a stage is made with.

    It takes as many slots of the GPUs' pool as it has GPUs on all its nodes, or of the cores' pool as it has
    cores; on a cluster, whose own quota holds, one of the common pool.
    """
    wanted, cores = gpus(stage) * nodes(stage), min(int(stage.meta.get("cpus", 1)), CORES)
    if wanted:
        pool, slots = GPU_POOL, wanted
    elif _runner() == "kubernetes":
        pool, slots = "default_pool", 1
    else:
        pool, slots = CORE_POOL, cores
    return {
        "task_id": stage.name,
        "doc_md": f"{stage.description}\n\nWhere it may run: `{stage.meta}`",
        "map_index_template": "{{ item }}" if stage.foreach is not None else None,
        "pool": pool,
        "pool_slots": slots,
        "execution_timeout": longest_stage(),
    }


def longest_stage() -> timedelta:
    """What a stage may take before it is stopped and tried again: CSLM_STAGE_HOURS, or a week.

    Raises:
        ValueError: it is no number of hours.
    """
    given = os.environ.get(STAGE_HOURS) or A_WEEK
    try:
        limit = timedelta(hours=float(given))
    except (ValueError, OverflowError):
        limit = timedelta(0)
    if limit <= timedelta(0):
        raise ValueError(f"{STAGE_HOURS}={given!r}: how many hours a stage may take, such as 12 or 168")
    return limit


def pools() -> dict[str, dict[str, Any]]:
    """Airflow's pools, as `airflow pools import` reads them; a deferred stage holds its slots."""
    made = {CORE_POOL: (CORES, "cores of this machine, for stages")}
    if count := gpus_at_hand():
        made[GPU_POOL] = (count, "GPUs, for stages (CSLM_GPUS)")
    return {
        name: {"slots": slots, "description": about, "include_deferred": True}
        for name, (slots, about) in made.items()
    }


def gpus(stage: graph.Stage) -> int:
    """GPUs of each node of a stage: what dvc.yaml's `meta` wants, of its share of CSLM_GPUS."""
    return min(int(stage.meta.get("gpus", 0)), gpus_at_hand() // nodes(stage))


def nodes(stage: graph.Stage) -> int:
    """Nodes that a stage works on: what `meta` wants, of those that it may have (CSLM_NODES); a cluster's only.

    Raises:
        ValueError: CSLM_NODES is no number.
    """
    given = os.environ.get("CSLM_NODES") or "1"
    if not given.isdigit() or int(given) < 1:
        raise ValueError(f"CSLM_NODES={given!r}: how many nodes a training may have, such as 1 or 3")
    return min(int(stage.meta.get("nodes", 1)), int(given)) if _runner() == "kubernetes" else 1


def gpus_at_hand() -> int:
    """CSLM_GPUS, or none.

    Raises:
        ValueError: it is no number.
    """
    given = os.environ.get("CSLM_GPUS") or "0"
    if not given.isdigit():
        raise ValueError(f"CSLM_GPUS={given!r}: how many GPUs stages may have, such as 0 or 8")
    return int(given)
