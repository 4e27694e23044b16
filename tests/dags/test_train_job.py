"""A training on several nodes: one TrainJob, whatever happens to Airflow, and a readable end."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from airflow.sdk.bases.operator import TriggerFailureReason
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred

from dags import dvc_stage, graph, places, run, runners, tracking
from dags.runners import pods, train_job
from dags.runners.train_job_trigger import TrainJobTrigger
from tests import trainer_schema
from tests.dags.cluster_of_nodes import Api, serve

STAGES = graph.read_graph(places.PROJECT / "dvc.yaml")
FACTS = {"run": "Of_today.1", "commit": "c", "mlflow_run": "m", "force": []}
NODES = places.PROJECT / "infra" / "kubernetes" / "overlays" / "nodes"
EVICTED = {"conditions": [{"type": "DisruptionTarget", "status": "True", "message": "preempted"}]}
TOO_MUCH = 'pods "x" is forbidden: exceeded quota: cslm, requested: requests.nvidia.com/gpu=8'


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Api]:
    """A cluster for stages on three nodes, and a run whose workspaces hold the parameters alone."""
    for name, value in {
        "CSLM_RUNNER": "kubernetes",
        "CSLM_NODES": "3",
        "CSLM_GPUS": "24",
        "CSLM_HOME": str(tmp_path),
        "CSLM_KUBERNETES_CLAIM": "shared",
        "CSLM_KUBERNETES_MOUNT": "/",
        "CSLM_KUBERNETES_NAMESPACE": "cslm",
        "CSLM_KUBERNETES_SECRET": "store",
        "AWS_SECRET_ACCESS_KEY": "hidden",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    monkeypatch.setattr(run, "start_stage", _start_stage)
    monkeypatch.setattr(tracking, "log_stage", lambda *_: None)
    monkeypatch.setattr(tracking, "end", lambda *_: None)
    monkeypatch.setattr(pods, "LOGS_EVERY_S", 0.01)
    api = Api()
    with serve(api, tmp_path) as kubeconfig:
        connection = {"conn_type": "kubernetes", "extra": {"kube_config_path": str(kubeconfig)}}
        monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps(connection))
        yield api


def _start_stage(facts: Any, stage: graph.Stage, item: str | None, ranks: int = 24) -> run.Work:
    work = run.work_of(facts, stage, item)
    (work.workspace / ".dvc" / "tmp").mkdir(parents=True, exist_ok=True)
    (work.workspace / "params.yaml").write_text(f"{stage.name}: {{ranks: {ranks}}}")
    return work


def _task() -> train_job.StageTrainJob:
    task = runners.task_of(STAGES["pretrain"], FACTS)
    assert isinstance(task, train_job.StageTrainJob)
    return task


def _begin() -> TrainJobTrigger:
    """Let a worker run the task until it is deferred."""
    with pytest.raises(TaskDeferred) as deferred:
        _task().execute({})
    kind, arguments = deferred.value.trigger.serialize()
    assert kind == "dags.runners.train_job_trigger.TrainJobTrigger"
    return TrainJobTrigger(**arguments)


def _event(trigger: TrainJobTrigger) -> dict[str, Any]:
    return dict(asyncio.run(anext(trigger.run())).payload)


def _gather(state: str = "ran") -> str:
    workspace = places.workspace(FACTS["run"], "pretrain")
    (workspace / ".dvc" / "tmp" / "result.json").write_text(json.dumps({"state": state}))
    return _task().gathered({}, _event(_begin()))


def test_it_is_a_valid_train_job(api: Api) -> None:
    _begin()
    [job] = api.made
    trainer_schema.validate(job)
    trainer = job["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (3, 8)
    assert trainer["resourcesPerNode"]["limits"] == {"cpu": "2", "memory": "8Gi", "nvidia.com/gpu": "8"}
    assert trainer["args"][:2] == ["--workspace", str(places.workspace(FACTS["run"], "pretrain"))]
    runtime = yaml.safe_load((NODES / "runtime.yaml").read_text())
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert job["spec"]["runtimeRef"]["kind"] == runtime["kind"]
    assert "hidden" not in str(job), "keys are references"


def test_its_pods_are_valid_and_without_rights(api: Api) -> None:
    """What Trainer makes of runtime and TrainJob: the patch upon the template, and the trainer's fields."""
    _begin()
    [job] = api.made
    [replicated] = yaml.safe_load((NODES / "runtime.yaml").read_text())["spec"]["template"]["spec"][
        "replicatedJobs"
    ]
    [patch] = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert patch["name"] == replicated["name"]
    template = replicated["template"]["spec"]["template"]
    more = patch["template"]["spec"]["template"]["spec"]
    trainer = job["spec"]["trainer"]
    [base], [mounts] = template["spec"]["containers"], more["containers"]
    assert base["name"] == mounts["name"] == "node"
    own = {
        "image": trainer["image"],
        "command": trainer["command"],
        "args": trainer["args"],
        "env": trainer["env"],
    }
    only = base | mounts | own | {"resources": trainer["resourcesPerNode"]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", **template["metadata"]}}
    pod["spec"] = template["spec"] | more | {"containers": [only]}
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
    assert pod["metadata"]["labels"] == pods.LABELS
    assert pod["spec"]["restartPolicy"] == "Never"
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["spec"]["tolerations"] == STAGES["pretrain"].meta["tolerations"]
    assert only["securityContext"]["readOnlyRootFilesystem"]
    assert only["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {mount["name"] for mount in only["volumeMounts"]} == {
        each["name"] for each in pod["spec"]["volumes"]
    }
    assert replicated["template"]["spec"]["backoffLimit"] == 0, "a pod that is made again would do all again"


def test_who_tries_again_finds_the_train_job_at_work(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _begin()
    monkeypatch.setattr(run, "start_stage", lambda *_: pytest.fail("its workspace would be emptied"))
    assert _begin().name == first.name
    assert len(api.made) == 1
    api.end("Complete")
    _begin()
    assert len(api.made) == 1, "its result waits to be gathered"


def test_one_that_has_failed_is_removed_before_there_is_another(api: Api) -> None:
    name = _begin().name
    api.end("Failed")
    _begin()
    assert api.removed == [name]
    assert [job["metadata"]["name"] for job in api.made] == [name, name]


def test_node_0_prints_into_the_tasks_log_while_it_works(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    trigger = _begin()
    api.add_pod(0, "Running")
    api.add_pod(1, "Running")
    printed = api.logs["job-node-0-0-abcde"] = []
    for line in ("first line", "second line", "third line"):
        printed.append(line)
        assert asyncio.run(trigger._look()) is None
        told = re.findall(r"\w+ line\b", capsys.readouterr().out)
        assert told == [line], "what is new, and nothing twice"
    api.end("Complete")
    assert _event(trigger)["status"] == "complete"


def test_what_is_done_is_gathered_and_removed(api: Api) -> None:
    name = _begin().name
    api.add_pod(0, "Succeeded", 0)
    api.logs["job-node-0-0-abcde"] = ["what it printed"]
    api.end("Complete")
    assert _gather("cached") == "cached"
    assert api.removed == [name]
    assert "what it printed" in places.stage_log(FACTS["run"], "pretrain").read_text()


@pytest.mark.parametrize(
    ("nodes", "kind", "said"),
    [
        ([(0, 1, {})], AirflowFailException, "the stage says why"),
        ([(1, 1, {}), (0, 1, {})], AirflowFailException, "node 1: no such GPU"),
        (
            [(0, 137, {"terminated": {"reason": "OOMKilled"}})],
            AirflowFailException,
            "needs more than its memory, 8Gi",
        ),
        ([(0, 1, {}), (1, 143, EVICTED)], AirflowException, "node 1: preempted"),
        ([(0, 1, {}), (1, 137, {"reason": "NodeLost"})], AirflowException, "node 1: NodeLost"),
        ([(1, 75, {})], AirflowException, "node 1 was told to end"),
        ([(0, 75, {})], AirflowException, "node 0 was told to end"),
        ([], AirflowException, "jobs failed"),
        (
            [(0, 1, {}), (1, 143, {"metadata": {"deletionTimestamp": "2026-11-27T21:00:00Z"}})],
            AirflowFailException,
            "the stage says why",
        ),
    ],
)
def test_only_what_another_try_can_mend_is_tried_again(
    api: Api, nodes: list[tuple[int, int, dict[str, Any]]], kind: type[Exception], said: str
) -> None:
    trigger = _begin()
    for index, code, changes in nodes:
        metadata = {"annotations": {"batch.kubernetes.io/job-completion-index": str(index)}} | changes.get(
            "metadata", {}
        )
        named = {"name": f"job-node-0-{index}-abcde", "namespace": "cslm"}
        api.add_pod(index, "Failed", code, **{**changes, "metadata": named | metadata})
    api.logs = {"job-node-0-0-abcde": ["the stage says why"], "job-node-0-1-abcde": ["no such GPU"]}
    api.end("Failed", "jobs failed")
    event = _event(trigger)
    with pytest.raises(kind, match=re.escape(said)) as caught:
        _task().gathered({}, event)
    assert caught.type is kind
    assert api.removed, "another try needs the name"


@pytest.mark.parametrize(
    ("refusal", "kind", "said"),
    [
        ((404, ""), AirflowFailException, "need Kubeflow Trainer 2.2 or later"),
        (
            (403, "admission webhook denied the request: runtime not found"),
            AirflowFailException,
            "runtime not found",
        ),
        ((403, "exceeded quota: cslm"), AirflowException, "exceeded quota: cslm"),
        ((503, "busy"), AirflowException, "the cluster does not do its work: busy"),
    ],
)
def test_a_refusal_is_told_in_the_clusters_words(
    api: Api, refusal: tuple[int, str], kind: type[Exception], said: str
) -> None:
    api.refusal = refusal
    with pytest.raises(kind, match=said) as caught:
        _task().execute({})
    assert caught.type is kind


def test_what_keeps_the_nodes_waiting_is_told(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    trigger = _begin()
    api.events = [TOO_MUCH]
    assert asyncio.run(trigger._look()) is None, "a busy cluster is no failure"
    assert f"waits: {TOO_MUCH}" in capsys.readouterr().out
    trigger.deadline = 0
    event = _event(trigger)
    with pytest.raises(AirflowFailException, match=r"did not begin to work: .*exceeded quota.*\n.*make images"):
        _task().gathered({}, event)


def test_a_task_that_is_cleared_or_killed_ends_its_train_job(api: Api) -> None:
    trigger = _begin()
    asyncio.run(trigger.on_kill())
    assert api.removed == [trigger.name]
    _begin()
    _task().on_kill()
    assert api.removed == [trigger.name] * 2


def test_a_train_job_that_works_for_too_long_is_stopped_and_tried_again(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow's own limit does not hold while a task is deferred."""
    monkeypatch.setenv("CSLM_STAGE_HOURS", "12")
    with pytest.raises(TaskDeferred) as deferred:
        _task().execute({})
    assert deferred.value.timeout == timedelta(hours=12)
    timed_out = {"error": TriggerFailureReason.TRIGGER_TIMEOUT}  # what Airflow resumes such a task with
    with pytest.raises(AirflowException, match=r"for more than 12 hours \(CSLM_STAGE_HOURS\)") as ended:
        _task().resume_execution("__fail__", timed_out, {})
    assert ended.type is AirflowException, "which is tried again"
    assert len(api.removed) == 1


def test_ranks_that_nodes_cannot_share_are_refused_before_any_is_asked_for(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "start_stage", lambda *given: _start_stage(*given, ranks=8))
    with pytest.raises(
        AirflowFailException, match=r"pretrain.ranks: 8 cannot be shared among 3 nodes \(CSLM_NODES\)"
    ):
        _task().execute({})
    assert not api.made


def test_airflow_asks_for_what_it_may_and_no_more(api: Api) -> None:
    granted = {("pods", "list"), ("pods/log", "get"), ("events", "list")}
    [role, _] = yaml.safe_load_all((NODES / "accounts.yaml").read_text())
    granted |= {("trainjobs", verb) for rule in role["rules"] for verb in rule["verbs"]}
    api.events = [TOO_MUCH]
    asyncio.run(_begin()._look())
    api.add_pod(0, "Running")
    api.end("Complete")
    _gather()
    assert api.asked == granted


def test_gpus_and_nodes_are_shared_out(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrain, validate = STAGES["pretrain"], STAGES["validate"]
    assert runners.arguments(pretrain)["pool_slots"] == 24
    assert (runners.nodes(pretrain), runners.nodes(validate)) == (3, 1)
    monkeypatch.setenv("CSLM_GPUS", "4")
    assert runners.gpus(pretrain) == 1, "4 cannot be 2 on each of 3"
    monkeypatch.setenv("CSLM_RUNNER", "docker")
    assert (runners.nodes(pretrain), runners.gpus(pretrain)) == (1, 4)
    monkeypatch.setenv("CSLM_RUNNER", "kubernetes")
    monkeypatch.setenv("CSLM_NODES", "0")
    with pytest.raises(ValueError, match="CSLM_NODES='0': how many nodes"):
        runners.task_of(pretrain, FACTS)


def test_kubernetes_can_name_pods_after_it() -> None:
    """`JOB-node-0-INDEX-abcde` and the host `JOB-node-0-INDEX` are RFC 1035 labels, up to node 99999."""
    given = pods.name("A long name of a run, " * 4, "finetune", train_job.LONGEST_NAME)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", given)
    assert len(f"{given}-node-0-99999-abcde") <= 63


def test_only_the_first_node_uses_dvc(tmp_path: Path) -> None:
    """The others take part in the training alone, out of the same workspace."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "$PWD" "$@"\nexit 75\n')
    python.chmod(0o755)
    command = [sys.executable, str(places.PROJECT / "dags" / "dvc_stage.py"), "--workspace", str(tmp_path)]
    ended = subprocess.run(
        [*command, "--stage", "pretrain", "--result", "/r.json", "--pull"],
        env={"PATH": f"{python.parent}:{os.environ['PATH']}", "PET_NODE_RANK": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stdout == f"{tmp_path} -m cslm.training.join /r.json\n"
    assert ended.returncode == 75


def test_both_sides_know_the_same_names() -> None:
    """dags/ must not import cslm/, so what they agree on stands in both."""
    training = places.PROJECT / "cslm" / "training"
    assert f'\nFILE = "{train_job.JOB_FILE}"\n' in (training / "nodes.py").read_text()
    assert f"\nPREEMPTED = {dvc_stage.TRY_AGAIN}\n" in (training / "ranks.py").read_text()
