"""The graph as a pipeline of Kubeflow Pipelines: what its YAML says, and how bad requests are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dags import graph, images, parameters, places
from infra.kubeflow.__main__ import PYTHON
from infra.kubeflow.plan import plan
from tests.dags import toy

STAGES = graph.read_graph(places.PROJECT / "dvc.yaml")
PARAMS = parameters.merged(places.PROJECT, "test", {})
COMPILER = places.PROJECT / "infra" / "kubeflow" / "compiler.py"
SECRET_VALUE = "this-must-stand-nowhere"
FACTS = {"run": "kubeflow-test-1", "commit": "c" * 40, "profile": "test", "force": ["train_decoder"]}
CALLERS = ("CSLM_", "AWS_", "MLFLOW_")

needs_kfp = pytest.mark.skipif(not PYTHON.exists(), reason="needs .venv/kubeflow: infra/setup.sh kubeflow")


@pytest.fixture(autouse=True)
def nothing_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(CALLERS)]:
        monkeypatch.delenv(name)


def _planned() -> dict[str, Any]:
    assert PARAMS is not None
    return plan(FACTS, "t" * 40, STAGES, PARAMS, "s3://bucket/dvc")


def _compiled(folder: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Pipeline, its part for Kubernetes alone, and their text."""
    (folder / "plan.json").write_text(json.dumps(_planned()))
    command = [PYTHON, COMPILER, folder / "plan.json", folder / "pipeline.yaml"]
    subprocess.run(command, check=True, env={"PATH": "/usr/bin:/bin", "HOME": str(folder)})
    text = (folder / "pipeline.yaml").read_text("utf-8")
    pipeline, platform = yaml.safe_load_all(text)
    return pipeline, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"], text


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CSLM_KUBERNETES_SECRET", "cslm-store")
        patch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
        patch.setenv("AWS_ENDPOINT_URL", "https://s3.example.org")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_VALUE)
        patch.setenv("CSLM_JUDGE_API_KEY", SECRET_VALUE)
        patch.delenv("CSLM_GPUS", raising=False)
        patch.delenv("CSLM_REGISTRY", raising=False)
        return _compiled(tmp_path_factory.mktemp("compiled"))


@needs_kfp
def test_the_edges_are_those_of_the_graph_and_carry_digests(compiled: tuple[Any, Any, str]) -> None:
    tasks = compiled[0]["root"]["dag"]["tasks"]
    edges = {name: set(task.get("dependentTasks", [])) for name, task in tasks.items()}
    assert edges["tokenize-zh"] == {"validate", "train-tokenizer"}
    assert edges["evaluate"] == {"validate", "align", "train-tokenizer", "train-decoder", "finetune"}
    assert edges["align"] == {"tokenize-en", "tokenize-zh", "train-tokenizer"}
    assert edges.pop("register") == set(edges)
    assert PARAMS is not None
    expected = {
        _name(stage.address(item)): {
            _name(STAGES[other].address(each))
            for other in stage.upstream
            for each in graph.items(STAGES[other], PARAMS) or [None]
        }
        for stage in STAGES.values()
        for item in graph.items(stage, PARAMS) or [None]
    }
    assert edges == expected
    for name, upstream in edges.items():
        inputs = tasks[name]["inputs"]["parameters"]
        given = {value["taskOutputParameter"]["producerTask"] for value in inputs.values() if _output(value)}
        assert given == upstream, name


@needs_kfp
def test_the_cache_knows_a_task_by_code_remote_and_inputs_and_is_off_where_it_is_forced(
    compiled: tuple[Any, Any, str],
) -> None:
    for name, task in compiled[0]["root"]["dag"]["tasks"].items():
        assert task["cachingOptions"].get("enableCache", False) is (name not in ("train-decoder", "register"))
        inputs = task["inputs"]["parameters"]
        assert inputs["code"]["runtimeValue"]["constant"] == "t" * 40
        assert inputs["remote"]["componentInputParameter"] == "remote"
    assert [name for name, each in _containers(compiled).items() if "--force" in each["args"]] == [
        "train-decoder"
    ]


@needs_kfp
def test_a_container_has_its_image_limits_and_accelerators(compiled: tuple[Any, Any, str]) -> None:
    containers = _containers(compiled)
    assert containers["tokenize-en"]["image"] == images.name("tokenize")
    assert containers["tokenize-en"]["command"][-2:] == ["--stage", "tokenize@en"]
    pretrain, validate = containers["pretrain"]["resources"], containers["validate"]["resources"]
    assert (pretrain["accelerator"]["resourceType"], pretrain["accelerator"]["resourceCount"]) == (
        "nvidia.com/gpu",
        "8",
    )
    assert "accelerator" not in validate
    for resources, cores, memory in ((pretrain, "2", "8Gi"), (validate, "1", "2Gi")):
        assert (resources["resourceCpuLimit"], resources["resourceMemoryLimit"]) == (cores, memory)
        assert (resources["resourceCpuRequest"], resources["resourceMemoryRequest"]) == (cores, memory)
    wanted = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert compiled[1]["exec-pretrain"]["tolerations"] == wanted
    assert "tolerations" not in compiled[1]["exec-validate"]


@needs_kfp
def test_keys_are_references_and_the_judges_is_for_one_stage(compiled: tuple[Any, Any, str]) -> None:
    _, platform, text = compiled
    assert SECRET_VALUE not in text
    keys = {
        name: {pair["envVar"] for secret in each["secretAsEnv"] for pair in secret["keyToEnv"]}
        for name, each in platform.items()
    }
    assert all({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= names for names in keys.values())
    assert [name for name, names in keys.items() if "CSLM_JUDGE_API_KEY" in names] == ["exec-evaluate"]
    assert all(s["secretName"] == "cslm-store" for each in platform.values() for s in each["secretAsEnv"])
    for each in _containers(compiled).values():
        told = {variable["name"]: variable["value"] for variable in each["env"]}
        assert told["AWS_ENDPOINT_URL"] == "https://s3.example.org"
        assert told["CSLM_GIT_COMMIT"] == "c" * 40
    pretrain, validate = (str(_containers(compiled)[name]["env"]) for name in ("pretrain", "validate"))
    assert "CSLM_GRANTED_GPUS" in pretrain and "CSLM_GRANTED_GPUS" not in validate


@pytest.mark.parametrize(("allowed", "given"), [("2", 2), ("0", 0), ("99", 8)])
def test_fewer_gpus_may_be_allowed(allowed: str, given: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSLM_GPUS", allowed)
    [pretrain] = [task for task in _planned()["tasks"] if task["name"] == "pretrain"]
    assert pretrain["gpus"] == given
    assert bool(pretrain["tolerations"]) == bool(given)


@pytest.mark.parametrize("uri", ["", "sqlite:////home/me/mlflow.db"])
def test_without_a_server_for_mlflow_nothing_is_registered(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    tasks = _planned()["tasks"]
    assert {"evaluate", "register"} & {task["name"] for task in tasks} == {"evaluate"}
    assert not any("MLFLOW_TRACKING_URI" in task["environment"] for task in tasks)


@needs_kfp
def test_without_a_container_engine_kfp_local_says_what_to_do(tmp_path: Path) -> None:
    program = places.PROJECT / "infra" / "kubeflow" / "local.py"
    command = [PYTHON, program, tmp_path / "x.yaml", "--remote", tmp_path, "--outputs", tmp_path]
    nowhere = {"DOCKER_HOST": f"unix://{tmp_path}/none.sock", "HOME": str(tmp_path)}
    ended = subprocess.run(command, env=nowhere, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert f"no container engine answers at unix://{tmp_path}/none.sock: start dockerd" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_bad_requests_are_refused_in_one_line(tmp_path: Path) -> None:
    project = toy.make(tmp_path / "toy")
    for variables, options, said in (
        ({"CSLM_DVC_REMOTE": "s3://bucket/dvc"}, ["--local"], "unset CSLM_DVC_REMOTE, or name a folder"),
        ({"SET": "final.plus"}, [], "is not KEY=VALUE"),
        ({"PROFILE": "nope"}, [], "no profile 'nope'; there are: sample, triple"),
    ):
        ended = subprocess.run(
            [sys.executable, "-m", "infra.kubeflow", *options],
            cwd=project,
            env=toy.environment(project) | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode in (1, 2)
        assert said in ended.stderr
        assert len(ended.stderr.splitlines()) == 1, ended.stderr


def _name(address: str) -> str:
    """How kfp names a task."""
    return address.replace("@", "-").replace("_", "-")


def _output(value: dict[str, Any]) -> bool:
    return "taskOutputParameter" in value


def _containers(compiled: tuple[Any, Any, str]) -> dict[str, Any]:
    executors = compiled[0]["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): each["container"] for name, each in executors.items()}
