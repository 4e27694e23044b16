"""DAG `cslm_train`: from a speech corpus to a registered, evaluated model.

One task per stage of dvc.yaml, in DVC's order, between `prepare` and `register`, `record`. A `foreach` stage is
mapped over its items. CSLM_RUNNER says where stages work (dags/runners).

    make demo                                    in one process
    make up, then trigger it on Airflow's page   with profile, overrides, ref, force
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from airflow.sdk import DAG, Param, get_current_context, task

from dags import assets, defaults, failures, graph, parameters, places, preparation, run, runners, tracking

STAGES = graph.read_graph(places.PROJECT / "dvc.yaml")

log = logging.getLogger("airflow.task")


@task
def prepare() -> dict[str, Any]:
    """Commit what is to be run, check its parameters, open its branch and MLflow run."""
    context = get_current_context()
    params, dag_run = context["params"], context["dag_run"]
    name = params["name"] or preparation.name_of(dag_run.run_id, dag_run.run_after)
    with failures.readable():
        return preparation.prepare(
            name,
            params["profile"],
            params["overrides"] or {},
            params["ref"] or "",
            params["force"] or [],
            log.info,
            params["base"] or "",
            params["why"] or "",
            dag_run.run_id,
        )


@task
def items(facts: dict[str, Any], stage: str) -> list[str]:
    """What a `foreach` stage is mapped over; Airflow maps only over a task's whole result."""
    return list(facts[stage])


@task(outlets=[assets.REGISTERED], execution_timeout=runners.longest_stage())
def register(facts: dict[str, Any]) -> int | None:
    """One version per distinct result, with alias `candidate`, and its number. Each is judged once."""
    with failures.readable():
        run.register(facts, log.info)
        version = tracking.registered(facts["model"], "candidate")
    if version and tracking.JUDGED & version.tags.keys():
        log.info("version %s was judged before: cslm_promote is not started again", version.version)
    else:
        facts_of_it = {"model": facts["model"], "version": int(version.version)} if version else {}
        get_current_context()["outlet_events"][assets.REGISTERED].add(assets.CANDIDATE, facts_of_it)
    return int(version.version) if version else None


@task
def record(facts: dict[str, Any]) -> str:
    """dvc.lock and metrics on branch runs/NAME; the MLflow run is closed."""
    with failures.readable():
        return run.record(facts, log.info)


def close(context: Mapping[str, Any]) -> None:
    """The run is FAILED in MLflow once a task of it has failed for good, whatever has ended that."""
    facts = context["ti"].xcom_pull(task_ids="prepare")
    if facts:
        with suppress(tracking.TrackingFailed):
            tracking.end(facts["mlflow_run"], "FAILED")


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
    default_args=defaults.arguments("training") | {"on_failure_callback": [defaults.tell, close]},
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
        listed = None
        if stage.foreach is not None:
            listed = items.override(task_id=f"{stage.name}_items")(facts, stage.name)
        tasks[stage.name] = runners.task_of(stage, facts, listed)
        for before in stage.upstream:
            tasks[before] >> tasks[stage.name]
    registered = register(facts)
    read = {name for stage in STAGES.values() for name in stage.upstream}
    for name in STAGES.keys() - read:
        tasks[name] >> registered
    registered >> record(facts)
