"""A plan (infra/kubeflow/plan.py) becomes YAML that Kubeflow Pipelines takes.

Run:  .venv/kubeflow/bin/python infra/kubeflow/compiler.py PLAN.json PIPELINE.yaml

A program of its own, in an environment of its own, because kfp and Airflow need different versions of the same
packages. It imports nothing of this project.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from kfp import compiler, dsl, kubernetes

GPU = "nvidia.com/gpu"
SHARED_MEMORY = "1Gi"


def main() -> int:
    plan, target = Path(sys.argv[1]), Path(sys.argv[2])
    partial = target.with_name(f".partial-{target.name}")
    compiler.Compiler().compile(pipeline_of(json.loads(plan.read_text("utf-8"))), str(partial))
    partial.rename(target)
    return 0


def pipeline_of(plan: dict[str, Any]) -> Any:
    """The pipeline of a plan. Its one parameter is the remote, so that a copy of it can be named instead.

    Its output is the last task's: so kfp.local notices too if that one failed in its first moment.
    """

    @dsl.pipeline(name=plan["name"], description=plan["description"])
    def pipeline(remote: str = plan["remote"]) -> str:
        made: dict[str, dsl.PipelineTask] = {}
        for task in plan["tasks"]:
            upstream = {name: made[name].outputs["outputs"] for name in task["upstream"]}
            made[task["name"]] = made_of(task, plan, upstream, remote)
        return made[plan["tasks"][-1]["name"]].outputs["outputs"]

    return pipeline


def made_of(task: dict[str, Any], plan: dict[str, Any], upstream: dict[str, Any], remote: Any) -> Any:
    """The task in its pipeline. The digests of what it reads are an input: the edges of the graph."""
    made = component(task)(code=plan["code"], remote=remote, upstream=upstream)
    made.set_display_name(task["name"]).set_caching_options(not task["force"])
    made.set_cpu_request(task["cpus"]).set_cpu_limit(task["cpus"])
    made.set_memory_request(task["memory"]).set_memory_limit(task["memory"])
    if task["gpus"]:
        made.set_accelerator_type(GPU).set_accelerator_limit(task["gpus"])
    for name, value in task["environment"].items():
        made.set_env_variable(name, value)
    if task["secrets"]:
        names = {name: name for name in task["secrets"]}
        kubernetes.use_secret_as_env(made, plan["secret"], names, optional=True)
    kubernetes.add_toleration_json(made, task["tolerations"])
    for key, value in task["node_selector"].items():
        kubernetes.add_node_selector(made, key, value)
    # What loaders of data and ranks speak through; a pod has 64 MB of it otherwise.
    kubernetes.empty_dir_mount(made, "shared-memory", "/dev/shm", "Memory", SHARED_MEMORY)
    return made


def component(task: dict[str, Any]) -> Any:
    """The container of a task, under a name that kfp takes."""

    def stage(code: str, remote: str, upstream: dict, outputs: dsl.OutputPath(str)):  # type: ignore[valid-type]
        force = ["--force"] if task["force"] and "--stage" in task["command"] else []
        arguments = ["--code", code, "--remote", remote, "--outputs", outputs, *force]
        return dsl.ContainerSpec(image=task["image"], command=task["command"], args=arguments)

    stage.__name__ = re.sub(r"[^a-z0-9]+", "_", task["name"].lower())
    stage.__doc__ = task["description"]
    return dsl.container_component(stage)


if __name__ == "__main__":
    sys.exit(main())
