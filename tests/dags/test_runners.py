"""Where stages work: what a container may use, and how a wrong choice is refused."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred
from airflow.sdk.module_loading import import_string
from airflow.triggers.base import TriggerEvent
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.client import ApiClient
from kubernetes.client import models as k8s

from dags import failures, graph, images, places, run, runners, store_connection
from dags.runners import container, docker, kubernetes, pod_trigger, pods
from tests.dags import toy

STAGES = graph.read_graph(places.PROJECT / "dvc.yaml")


def test_an_unknown_runner_is_refused_with_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSLM_RUNNER", "dcoker")
    with pytest.raises(ValueError, match="CSLM_RUNNER='dcoker' is no runner: choose one of local, docker, kub"):
        runners.task_of(STAGES["validate"], {})


@pytest.mark.parametrize(
    ("quantity", "number"), [("4Gi", 4_294_967_296), ("512Mi", 536_870_912), ("1Ki", 1024)]
)
def test_memory_is_read_as_kubernetes_writes_it(quantity: str, number: int) -> None:
    assert container.memory_bytes(quantity) == number


@pytest.mark.parametrize("quantity", ["4G", "4", "1.5Gi", "4gi", ""])
def test_other_notations_of_memory_are_refused(quantity: str) -> None:
    with pytest.raises(ValueError, match="a whole number and one of Ki, Mi, Gi, Ti"):
        container.memory_bytes(quantity)


def test_every_stage_has_an_image_and_limits() -> None:
    for stage in STAGES.values():
        assert images.name(str(stage.meta["image"])).startswith(f"localhost/cslm-{stage.meta['image']}:")
        assert container.memory_bytes(str(stage.meta["memory"])) >= 2**30
        assert int(stage.meta["cpus"]) >= 1


def test_every_component_has_an_image() -> None:
    components = {path.parent.name for path in (places.PROJECT / "components").glob("*/__main__.py")}
    assert components == {path.parent.name for path in (places.PROJECT / "components").glob("*/Dockerfile")}


def test_a_container_is_told_of_the_run_and_of_no_secret_of_airflow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "secret")
    monkeypatch.setenv("CSLM_AIRFLOW_DATABASE", "secret")
    monkeypatch.setenv("GITHUB_TOKEN", "secret")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("CSLM_HOME", str(tmp_path))
    monkeypatch.setenv("CSLM_JUDGE_API_KEY", "secret")
    monkeypatch.setenv("CSLM_FAILURE_WEBHOOK", "secret")
    facts = {"run": "r", "commit": "c", "mlflow_run": "m", "airflow_run": "manual__1", "data_version": "en=1"}
    told = container.environment(places.stage_environment(facts), 1, "validate")
    assert "secret" not in told.values()
    assert told["CSLM_RUN_ID"] == "r"
    assert (told["CSLM_AIRFLOW_RUN"], told["CSLM_DATA_VERSION"]) == ("manual__1", "en=1")
    assert told["AWS_ACCESS_KEY_ID"] == "key"
    assert told["OMP_NUM_THREADS"] == "1"
    assert "PATH" not in told, "the image has its own"


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CSLM_HOME", "MLFLOW_TRACKING_URI", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")
    told = places.component_environment()
    assert told["CSLM_HOME"] == str(places.PROJECT / "var")
    assert told["MLFLOW_TRACKING_URI"] == f"sqlite:///{places.PROJECT}/var/mlflow.db"
    assert told["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "3"
    assert int(told["OMP_NUM_THREADS"]) > 0


@pytest.mark.parametrize(
    ("variables", "network"),
    [
        ({}, "none"),
        ({"CSLM_DVC_REMOTE": "s3://bucket/dvc"}, "host"),
        ({"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"}, "host"),
        ({"CSLM_ARTIFACTS": "s3://bucket/mlflow"}, "host"),
        ({"CSLM_CHECKPOINTS": "s3://bucket/checkpoints"}, "host"),
        ({"MLFLOW_TRACKING_URI": "postgresql://mlflow@db/mlflow"}, "host"),
        ({"CSLM_JUDGE_API_KEY": "key"}, "none"),
        ({"CSLM_NETWORK": "cslm", "MLFLOW_TRACKING_URI": "http://mlflow:5000"}, "cslm"),
        ({"CSLM_NETWORK": "cslm"}, "none"),
    ],
)
def test_a_stage_has_the_network_only_if_it_needs_it(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], network: str
) -> None:
    for name in ("CSLM_DVC_REMOTE", "MLFLOW_TRACKING_URI", "CSLM_ARTIFACTS", "CSLM_JUDGE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert docker._network("validate") == network


def test_the_judge_may_be_asked_by_the_stage_that_asks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSLM_JUDGE_API_KEY", "key")
    assert docker._network("evaluate") == "host"
    facts = {"run": "r", "commit": "c", "mlflow_run": "m"}
    told = container.environment(places.stage_environment(facts), 1, "evaluate")
    assert told["CSLM_JUDGE_API_KEY"] == "key"


def test_a_container_sees_what_it_needs_and_not_airflows_keys(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pass").write_text("x")
    monkeypatch.setenv("CSLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CSLM_DVC_REMOTE", str(tmp_path / "remote"))
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pass"))
    mounts = {mount["Target"]: mount for mount in docker._mounts()}
    assert not mounts[str(tmp_path / "remote")]["ReadOnly"]
    assert mounts[str(tmp_path / "pass")]["ReadOnly"]
    keys = mounts[str(tmp_path / "home" / "airflow")]
    assert keys["ReadOnly"]
    assert list(Path(keys["Source"]).iterdir()) == []


@pytest.mark.parametrize(
    ("error", "kind"), [(run.MachineAway, AirflowException), (run.RunFailed, AirflowFailException)]
)
def test_airflow_tries_again_where_a_machine_was_away(
    error: type[Exception], kind: type[Exception], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CSLM_HOME", str(tmp_path))
    facts = {"run": "r", "mlflow_run": ""}
    with pytest.raises(kind, match="why") as caught, failures.readable(), run.reported(facts, "validate"):
        raise error("why")
    assert caught.type is kind
    assert '"state": "failed"' in (tmp_path / "runs" / "r" / "events.jsonl").read_text()


def test_no_cluster_is_an_error_that_says_what_to_check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    task = kubernetes.StagePod(task_id="validate", stage_name="validate", facts={"run": "r"})
    with pytest.raises(run.MachineAway, match=r"the cluster does not do its work.*KUBECONFIG"):
        task._at_work({})


def test_no_engine_is_an_error_that_says_what_to_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    task = docker.StageContainer(task_id="validate", stage_name="validate", facts={"run": "r"})
    work = run.Work("validate", tmp_path, [], {})
    with pytest.raises(
        run.MachineAway, match=r"container engine at unix://.*none\.sock does not do its work.*DOCKER_HOST"
    ):
        task._launch(work, print)


def _pod(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stage: str, **variables: str) -> dict[str, Any]:
    """What a cluster is sent for a stage, checked against Kubernetes' own schema."""
    given = {"CSLM_KUBERNETES_CLAIM": "shared", "CSLM_KUBERNETES_MOUNT": "/", "CSLM_HOME": str(tmp_path)}
    for name in container.FILES:
        monkeypatch.delenv(name, raising=False)
    for name, value in (given | variables).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(kubernetes.StagePod, "_get_ti_pod_labels", lambda *_, **__: {"dag_id": "cslm_train"})
    facts = {"run": "Of_today.1", "commit": "c", "mlflow_run": "m", "force": []}
    task = kubernetes.StagePod(
        **{k: v for k, v in runners.arguments(STAGES[stage]).items() if k != "map_index_template"},
        stage_name=stage,
        facts=facts,
    )
    task._describe(run.work_of(facts, STAGES[stage], "en" if STAGES[stage].foreach else None))
    pod = ApiClient().sanitize_for_serialization(task.build_pod_request_obj({}, dry_run=True))
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
    return dict(pod)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_a_valid_pod_without_rights(
    stage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pod = _pod(monkeypatch, tmp_path, stage, CSLM_GRACE_S="900")
    assert pod["spec"]["terminationGracePeriodSeconds"] == 900
    [only] = pod["spec"]["containers"]
    assert only["resources"]["limits"] == only["resources"]["requests"]
    assert only["resources"]["limits"]["memory"] == STAGES[stage].meta["memory"]
    assert only["securityContext"]["readOnlyRootFilesystem"]
    assert only["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["spec"]["restartPolicy"] == "Never"
    assert "nvidia.com/gpu" not in only["resources"]["limits"]


def test_a_pod_refers_to_secrets_and_holds_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secrets = {
        "AWS_ACCESS_KEY_ID": "hidden-key",
        "AWS_SECRET_ACCESS_KEY": "hidden-secret",
        "PGPASSWORD": "hidden-password",
        "CSLM_JUDGE_API_KEY": "hidden-judge",
        "CSLM_FAILURE_WEBHOOK": "hidden-url",
        "CSLM_KUBERNETES_SECRET": "store",
    }
    validate = _pod(monkeypatch, tmp_path, "validate", **secrets)
    assert "hidden" not in str(validate)
    references = {
        variable["name"]: variable["valueFrom"]["secretKeyRef"]
        for variable in validate["spec"]["containers"][0]["env"]
        if "valueFrom" in variable
    }
    assert references["AWS_SECRET_ACCESS_KEY"] == {
        "name": "store",
        "key": "AWS_SECRET_ACCESS_KEY",
        "optional": True,
    }
    assert "CSLM_JUDGE_API_KEY" not in references, "the key of one stage"
    evaluate = _pod(monkeypatch, tmp_path, "evaluate", **secrets)
    assert "hidden" not in str(evaluate)
    assert "CSLM_JUDGE_API_KEY" in str(evaluate)


@pytest.mark.parametrize("store", ["CSLM_DVC_REMOTE", "CSLM_CHECKPOINTS", "CSLM_ARTIFACTS"])
def test_keys_that_no_secret_has_are_refused_and_not_left_out(
    store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else the pod would ask the store without any, and the stage would fail for no reason that is seen."""
    connection = {"conn_type": "generic", "login": "hidden-key", "password": "hidden-secret"}
    monkeypatch.setenv("AIRFLOW_CONN_CSLM_S3", json.dumps(connection))
    store_connection.take_over()
    with pytest.raises(run.RunFailed, match="pods take the object store's keys from a Secret") as refused:
        _pod(monkeypatch, tmp_path, "validate", **{store: "s3://bucket/folder"})
    assert "name it: CSLM_KUBERNETES_SECRET=cslm-store" in str(refused.value)
    assert "hidden" not in str(refused.value)
    monkeypatch.delenv(store)
    assert "hidden" not in str(_pod(monkeypatch, tmp_path, "validate")), "without a store none is needed"


def test_a_stage_with_gpus_asks_for_them_and_for_nodes_that_have_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pod = _pod(monkeypatch, tmp_path, "pretrain", CSLM_GPUS="8")
    assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert pod["spec"]["tolerations"] == STAGES["pretrain"].meta["tolerations"]
    assert runners.arguments(STAGES["pretrain"])["pool"] == "cslm_gpu"
    assert not _pod(monkeypatch, tmp_path, "validate", CSLM_GPUS="8")["spec"].get("tolerations")
    assert runners.arguments(STAGES["validate"])["pool"] == "cslm_cores"
    monkeypatch.setenv("CSLM_RUNNER", "kubernetes")
    assert runners.arguments(STAGES["validate"])["pool"] == "default_pool", "a cluster has a quota of its own"


def test_a_number_of_gpus_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSLM_GPUS", "two")
    with pytest.raises(ValueError, match="CSLM_GPUS='two': how many GPUs"):
        runners.arguments(STAGES["pretrain"])


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"CSLM_KUBERNETES_CLAIM": ""}, "CSLM_KUBERNETES_CLAIM is not set"),
        ({"CSLM_KUBERNETES_MOUNT": "/elsewhere"}, "which pods cannot see: it must lie under /elsewhere"),
        (
            {"CSLM_KUBERNETES_MOUNT": "/elsewhere", "PGPASSFILE": "/root/.pgpass"},
            "PGPASSFILE=/root/.pgpass: pods see only",
        ),
    ],
)
def test_a_pod_that_could_not_see_its_files_is_refused(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(run.RunFailed, match=re.escape(said)):
        _pod(monkeypatch, tmp_path, "validate", **variables)


def _ended_pod(
    code: int | None, reason: str | None = None, gone: bool = False, pod_reason: str | None = None
) -> k8s.V1Pod:
    ended = k8s.V1ContainerStateTerminated(exit_code=code, reason=reason) if code is not None else None
    status = k8s.V1ContainerStatus(
        name="base",
        image="",
        image_id="",
        ready=False,
        restart_count=0,
        state=k8s.V1ContainerState(terminated=ended),
    )
    return k8s.V1Pod(
        metadata=k8s.V1ObjectMeta(deletion_timestamp="2026-11-27T00:00:00Z" if gone else None),
        status=k8s.V1PodStatus(phase="Failed", reason=pod_reason, container_statuses=[status]),
    )


@pytest.mark.parametrize(
    ("pod", "status", "expected", "said"),
    [
        (_ended_pod(0), "success", 0, ""),
        (_ended_pod(1, "Error"), "failed", 1, ""),
        (_ended_pod(137, "OOMKilled"), "failed", 137, "needs more than its memory, 2Gi"),
        (_ended_pod(75, "Error"), "failed", 75, ""),
        (_ended_pod(143, "Error"), "failed", run.MachineAway, ""),
        (_ended_pod(137, "Error", gone=True), "failed", run.MachineAway, ""),
        (_ended_pod(137, "Error", pod_reason="Evicted"), "failed", run.MachineAway, ""),
        (_ended_pod(None), "error", run.MachineAway, ""),
        (None, "error", run.MachineAway, ""),
        (_ended_pod(None), "timeout", run.RunFailed, ""),
    ],
)
def test_only_what_another_try_can_mend_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    pod: k8s.V1Pod | None,
    status: str,
    expected: int | type[Exception],
    said: str,
) -> None:

    def reentry(task: Any, context: Any, event: dict[str, Any]) -> None:
        task.pod = pod
        if event["status"] != "success":
            raise AirflowException("the pod has failed")

    monkeypatch.setattr(KubernetesPodOperator, "trigger_reentry", reentry)
    monkeypatch.setattr(kubernetes.StagePod, "_lines", lambda *_: ["what it printed"])
    task = kubernetes.StagePod(task_id="validate", stage_name="validate", facts={"run": "r"})
    event, told = {"name": "pod", "namespace": "cslm", "status": status, "message": "m"}, []
    if isinstance(expected, int):
        assert task._ended({}, event, told.append) == expected
    else:
        with pytest.raises(expected) as caught:
            task._ended({}, event, told.append)
        assert caught.type is expected, "a MachineAway is tried again, a RunFailed is final"
    assert told[0] == "what it printed"
    assert said in "".join(told[1:])


@pytest.mark.parametrize(("number", "waits"), [(7, True), (None, False)], ids=["of a triggerer", "of the demo"])
def test_the_end_of_a_pod_is_told_when_the_scheduler_can_hear_it(
    number: int | None, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod that ends at once, whose task would go on while Airflow has still to read that it was deferred."""

    async def ended(_: Any) -> AsyncIterator[TriggerEvent]:
        yield TriggerEvent({"status": "success"})

    task = kubernetes.StagePod(task_id="validate", stage_name="validate", facts={"run": "r"})
    begun = datetime.now(UTC)
    given = KubernetesPodTrigger("pod", "cslm", begun, "base")
    with pytest.raises(TaskDeferred) as deferred:
        task.defer(trigger=given, method_name="trigger_reentry")
    path, arguments = deferred.value.trigger.serialize()
    trigger = import_string(path)(**arguments)
    trigger.trigger_id = number
    monkeypatch.setattr(KubernetesPodTrigger, "run", ended)
    monkeypatch.setattr(pod_trigger, "SETTLED", timedelta(seconds=2))
    event = asyncio.run(anext(trigger.run()))
    assert event.payload == {"status": "success"}
    assert (datetime.now(UTC) - begun >= timedelta(seconds=2)) is waits


@given(st.text(min_size=1, max_size=90), st.sampled_from(["validate", "tokenize@en", "ingest@My corpus"]))
def test_names_of_pods_are_valid_and_different(name: str, address: str) -> None:
    given = pods.name(name, address)
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", given), "RFC 1123"
    assert given != pods.name(name, address.upper())
    assert given != pods.name(name + "x", address)


def test_an_image_changes_its_name_with_the_lock(tmp_path: Path) -> None:
    project = toy.make(tmp_path / "project")
    for name in images.ENVIRONMENT:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("one")
    (project / "components" / "toy").mkdir()
    (project / "components" / "toy" / "Dockerfile").write_text("FROM x")
    name = [sys.executable, "-c", "from dags import images; print(images.name('toy'))"]

    def tag() -> str:
        return subprocess.run(name, cwd=project, capture_output=True, text=True, check=True).stdout

    before = tag()
    (project / "README.md").write_text("another text")
    assert tag() == before
    (project / "requirements" / "data.txt").write_text("two")
    assert tag() != before


def test_a_stage_is_told_how_many_gpus_its_container_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One that sees fewer refuses to work: tests/components/test_stage.py."""

    def told(stage: str) -> dict[str, Any]:
        pod = _pod(monkeypatch, tmp_path, stage, CSLM_GPUS="8")
        return {each["name"]: each.get("value") for each in pod["spec"]["containers"][0]["env"]}

    assert told("pretrain")["CSLM_GRANTED_GPUS"] == "8"
    assert "CSLM_GRANTED_GPUS" not in told("validate")
