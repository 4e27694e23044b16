"""What is to be compiled: the tasks of dvc.yaml under a run's parameters, as plain values.

A task is a stage, or an item of one, in a container of its image. It gets from a pipeline what it gets from
Airflow in a pod (dags/runners/kubernetes.py): cores, memory, GPUs, tolerations and node selector of its `meta`,
variables, and references to a Secret instead of keys. What is not among its arguments is not among what
Kubeflow's cache knows a task by: so the code and the remote are arguments, and the variables change no result.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any

from dags import graph, images, run, runners
from dags.runners import container

PASSED = (
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "CSLM_ARTIFACTS",
    "CSLM_CHECKPOINTS",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_TRACKING_URI",
)
"""Variables of `make kubeflow` that all tasks get."""
SECRET = "CSLM_KUBERNETES_SECRET"
SERVERS = ("http://", "https://", "postgresql")


@dataclass(frozen=True)
class Task:
    """A container that brings one stage to its end."""

    name: str
    """DVC's name of the stage, such as tokenize@en; or `register`."""
    description: str
    upstream: list[str]
    image: str
    command: list[str]
    cpus: str
    memory: str
    gpus: int
    tolerations: list[dict[str, Any]]
    node_selector: dict[str, str]
    force: bool
    environment: dict[str, str]
    secrets: list[str] = field(default_factory=list)
    """Variables whose values come from the plan's Secret."""


def plan(
    facts: run.Facts, tree: str, stages: dict[str, graph.Stage], params: dict[str, Any], remote: str
) -> dict[str, Any]:
    """The pipeline of a run, as JSON has it.

    `facts` are the run's name, commit, profile and the stages that are forced; `tree` is the git tree of the
    commit, by which the remote has its code (dags/remote_stage.py).

    Raises:
        ValueError: a stage's image or memory cannot be.
    """
    tasks = [
        _task(facts, stage, item, _upstream(stage, stages, params))
        for stage in stages.values()
        for item in _items(stage, params)
    ]
    if tracked():
        tasks.append(_register(facts, [task.name for task in tasks]))
    return {
        "name": f"cslm-{facts['profile']}",
        "description": f"Run {facts['run']}: profile {facts['profile']}, commit {facts['commit']}",
        "code": tree,
        "remote": remote,
        "secret": os.environ.get(SECRET) or None,
        "tasks": [asdict(task) for task in tasks],
    }


def tracked() -> bool:
    """Whether tasks can reach the MLflow of this environment: a file of this machine they cannot."""
    return os.environ.get("MLFLOW_TRACKING_URI", "").startswith(SERVERS)


def gpus(stage: graph.Stage) -> int:
    """What dvc.yaml's `meta` asks for, the cluster not being known; no more than CSLM_GPUS if that is set."""
    return runners.gpus(stage) if os.environ.get("CSLM_GPUS") else int(stage.meta.get("gpus", 0))


def _task(facts: run.Facts, stage: graph.Stage, item: str | None, upstream: list[str]) -> Task:
    meta, wanted, address = stage.meta, gpus(stage), stage.address(item)
    cpus = int(meta.get("cpus", 1))
    container.memory_bytes(str(meta["memory"]))  # a wrong notation is refused here, not by the cluster
    return Task(
        name=address,
        description=stage.description,
        upstream=upstream,
        image=images.name(str(meta["image"])),
        command=[*images.REMOTE_COMMAND, "--stage", address],
        cpus=str(cpus),
        memory=str(meta["memory"]),
        gpus=wanted,
        tolerations=list(meta.get("tolerations") or []) if wanted else [],
        node_selector=dict(meta.get("node_selector") or {}) if wanted else {},
        force=bool({"all", stage.name, address} & set(facts["force"])),
        environment=_environment(facts, cpus) | container.granted(wanted),
        secrets=list(container.secrets(stage.name)) if os.environ.get(SECRET) else [],
    )


def _register(facts: run.Facts, upstream: list[str]) -> Task:
    """The last task; it makes a version of the results, as Airflow's does."""
    return Task(
        name=run.REGISTER,
        description="The evaluated model becomes a version, a candidate",
        upstream=upstream,
        image=images.name(run.REGISTER),
        command=[*images.REMOTE_COMMAND, "--register"],
        cpus="1",
        memory="4Gi",
        gpus=0,
        tolerations=[],
        node_selector={},
        force=True,  # the alias goes to it whether or not it is new
        environment=_environment(facts, 1),
        secrets=list(container.SECRETS) if os.environ.get(SECRET) else [],
    )


def _environment(facts: run.Facts, cpus: int) -> dict[str, str]:
    passed = {name: os.environ[name] for name in PASSED if os.environ.get(name)}
    if not tracked():
        passed.pop("MLFLOW_TRACKING_URI", None)
    return passed | {
        "CSLM_RUN_ID": facts["run"],
        "CSLM_GIT_COMMIT": facts["commit"],
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES") or "3",
        "OMP_NUM_THREADS": str(cpus),
        "USER": "cslm",
        "LOGNAME": "cslm",
    }


def _upstream(stage: graph.Stage, stages: dict[str, graph.Stage], params: dict[str, Any]) -> list[str]:
    return [stages[name].address(item) for name in stage.upstream for item in _items(stages[name], params)]


def _items(stage: graph.Stage, params: dict[str, Any]) -> list[str] | list[None]:
    known = graph.items(stage, params)
    return [None] if known is None else known
