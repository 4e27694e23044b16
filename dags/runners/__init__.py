"""Where the stages of a run work. `CSLM_RUNNER` says which:

    local     a process beside Airflow, in the environment that `make setup` made
    docker    a container of the component's image (make images), with the cores and memory of dvc.yaml's `meta`

Each is a module with `task_of`; what a task does, and what it leaves behind, is the same (`dags.run`).
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from dags import graph

RUNNERS = ("local", "docker")
CORES = os.cpu_count() or 1


def task_of(stage: graph.Stage, facts: Any, items: Any = None) -> Any:
    """The Airflow task of a stage; mapped over `items` if the stage has some.

    Raises:
        ValueError: CSLM_RUNNER names no runner.
    """
    name = os.environ.get("CSLM_RUNNER") or "local"
    if name not in RUNNERS:
        raise ValueError(f"CSLM_RUNNER={name!r} is no runner: choose one of {', '.join(RUNNERS)}")
    return import_module(f"dags.runners.{name}").task_of(stage, facts, items)


def arguments(stage: graph.Stage) -> dict[str, Any]:
    """What every runner's task of a stage is made with. It takes as many slots of the pool as it has cores."""
    return {
        "task_id": stage.name,
        "doc_md": f"{stage.description}\n\nWhere it may run: `{stage.meta}`",
        "map_index_template": "{{ item }}" if stage.foreach is not None else None,
        "pool_slots": min(int(stage.meta.get("cpus", 1)), CORES),
    }
