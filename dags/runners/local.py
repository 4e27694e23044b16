"""Stages as processes beside Airflow."""

from __future__ import annotations

import logging
from typing import Any

from airflow.sdk import get_current_context, task

from dags import failures, graph, run, runners

log = logging.getLogger("airflow.task")


def task_of(stage: graph.Stage, facts: Any, items: Any = None) -> Any:
    """A task that brings the stage, or one of its items, to its end."""

    @task(**runners.arguments(stage))
    def stage_of_graph(facts: dict[str, Any], item: str | None = None) -> str:
        if item is not None:
            get_current_context()["item"] = item  # type: ignore[typeddict-unknown-key]
        with failures.readable():
            return run.run_stage(facts, stage, item, log.info)

    return stage_of_graph(facts) if items is None else stage_of_graph.partial(facts=facts).expand(item=items)
