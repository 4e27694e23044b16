"""DAG `cslm_train`: from a speech corpus to a registered, evaluated model.

One task per stage of dvc.yaml, in DVC's order, between `prepare` and `register`, `record`. A `foreach` stage is
mapped over its items. Each stage task asks for as many slots of the pool as the stage has cores.

    make demo                                    in one process
    make up, then trigger it on Airflow's page   with profile, overrides, ref, force
"""

from __future__ import annotations

import logging
import os
from datetime import datetime
from typing import Any

from airflow.sdk import DAG, Param, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException

from dags import assets, defaults, graph, parameters, places, preparation, run, snapshot, tracking

CORES = os.cpu_count() or 1
STAGES = graph.read_graph(places.PROJECT / "dvc.yaml")

log = logging.getLogger("airflow.task")


@task
def prepare() -> dict[str, Any]:
    """Commit what is to be run, check its parameters, open its branch and MLflow run."""
    context = get_current_context()
    params, dag_run = context["params"], context["dag_run"]
    name = params["name"] or preparation.name_of(dag_run.run_id, dag_run.run_after)
    with _readable_failure():
        return preparation.prepare(
            name,
            params["profile"],
            params["overrides"] or {},
            params["ref"] or "",
            params["force"] or [],
            log.info,
            params["base"] or "",
            params["why"] or "",
        )


@task
def items(facts: dict[str, Any], stage: str) -> list[str]:
    """What a `foreach` stage is mapped over; Airflow maps only over a task's whole result."""
    return list(facts[stage])


@task(outlets=[assets.CANDIDATE])
def register(facts: dict[str, Any]) -> None:
    """One version per distinct result, with alias `candidate`."""
    with _readable_failure():
        run.register(facts, log.info)


@task
def record(facts: dict[str, Any]) -> str:
    """dvc.lock and metrics on branch runs/NAME; the MLflow run is closed."""
    with _readable_failure():
        return run.record(facts, log.info)


def stage_task(stage: graph.Stage) -> Any:
    """A task that brings the stage, or one of its items, to its end."""

    @task(
        task_id=stage.name,
        doc_md=f"{stage.description}\n\nWhere it may run: `{stage.meta}`",
        map_index_template="{{ item }}" if stage.foreach is not None else None,
        pool_slots=min(int(stage.meta.get("cpus", 1)), CORES),
    )
    def stage_of_graph(facts: dict[str, Any], item: str | None = None) -> str:
        if item is not None:
            get_current_context()["item"] = item  # type: ignore[typeddict-unknown-key]
        with _readable_failure():
            return run.run_stage(facts, stage, item, log.info)

    return stage_of_graph


class _readable_failure:
    """A failure that is explained already ends the task without a retry or a traceback through our code."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, run.RunFailed | snapshot.SnapshotFailed | tracking.TrackingFailed):
            raise AirflowFailException(str(error)) from None


with DAG(
    dag_id="cslm_train",
    description="From a speech corpus to a registered, evaluated model",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    tags=["cslm", "training"],
    default_args=defaults.arguments("training"),
    params={
        "profile": Param(
            parameters.DEFAULT_PROFILE,
            enum=parameters.profiles(places.PROJECT),
            description="params.yaml, changed by profiles/PROFILE.yaml",
        ),
        "overrides": Param(
            {}, type="object", description='Single parameters, such as {"finetune.learning_rate": 0.0002}'
        ),
        "ref": Param(
            "", type=["string", "null"], description="Commit or branch to run; empty: the work tree as it is"
        ),
        "force": Param(
            [],
            type=["array", "null"],
            items={"type": "string"},
            description="Stages to run even if cached, or all",
        ),
        "base": Param(
            "",
            type=["string", "null"],
            description="Registered version to continue from, by number or alias (production); "
            "empty: the checkpoints that the parameters name",
        ),
        "why": Param("", type=["string", "null"], description="Noted on the run's page in MLflow"),
        "name": Param("", type=["string", "null"], description="Name of the run; empty: date and time"),
    },
) as cslm_train:
    facts = prepare()
    tasks: dict[str, Any] = {}
    for stage in STAGES.values():
        new = stage_task(stage)
        if stage.foreach is None:
            tasks[stage.name] = new(facts)
        else:
            listed = items.override(task_id=f"{stage.name}_items")(facts, stage.name)
            tasks[stage.name] = new.partial(facts=facts).expand(item=listed)
        for before in stage.upstream:
            tasks[before] >> tasks[stage.name]
    registered = register(facts)
    read = {name for stage in STAGES.values() for name in stage.upstream}
    for name in STAGES.keys() - read:
        tasks[name] >> registered
    registered >> record(facts)
