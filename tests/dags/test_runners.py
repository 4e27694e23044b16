"""Where stages work: what a container may use, and how a wrong choice is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dags import graph, images, places, run, runners
from dags.runners import docker
from tests.dags import toy

STAGES = graph.read_graph(places.PROJECT / "dvc.yaml")


def test_an_unknown_runner_is_refused_with_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSLM_RUNNER", "dcoker")
    with pytest.raises(ValueError, match="CSLM_RUNNER='dcoker' is no runner: choose one of local, docker"):
        runners.task_of(STAGES["validate"], {})


@pytest.mark.parametrize(
    ("quantity", "number"), [("4Gi", 4_294_967_296), ("512Mi", 536_870_912), ("1Ki", 1024)]
)
def test_memory_is_read_as_kubernetes_writes_it(quantity: str, number: int) -> None:
    assert docker.memory_bytes(quantity) == number


@pytest.mark.parametrize("quantity", ["4G", "4", "1.5Gi", "4gi", ""])
def test_other_notations_of_memory_are_refused(quantity: str) -> None:
    with pytest.raises(ValueError, match="a whole number and one of Ki, Mi, Gi, Ti"):
        docker.memory_bytes(quantity)


def test_every_stage_has_an_image_and_limits() -> None:
    for stage in STAGES.values():
        assert images.name(str(stage.meta["image"])).startswith(f"localhost/cslm-{stage.meta['image']}:")
        assert docker.memory_bytes(str(stage.meta["memory"])) >= 2**30
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
    facts = {"run": "r", "commit": "c", "mlflow_run": "m"}
    told = docker._environment(places.stage_environment(facts), 1, "validate")
    assert "secret" not in told.values()
    assert told["CSLM_RUN_ID"] == "r"
    assert told["AWS_ACCESS_KEY_ID"] == "key"
    assert told["OMP_NUM_THREADS"] == "1"
    assert "PATH" not in told, "the image has its own"


@pytest.mark.parametrize(
    ("variables", "network"),
    [
        ({}, "none"),
        ({"CSLM_DVC_REMOTE": "s3://bucket/dvc"}, "host"),
        ({"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"}, "host"),
        ({"CSLM_ARTIFACTS": "s3://bucket/mlflow"}, "host"),
        ({"MLFLOW_TRACKING_URI": "postgresql://mlflow@db/mlflow"}, "host"),
        ({"CSLM_JUDGE_API_KEY": "key"}, "none"),
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
    told = docker._environment(places.stage_environment(facts), 1, "evaluate")
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


def test_no_engine_is_an_error_that_says_what_to_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    container = docker.StageContainer(task_id="validate", stage_name="validate", facts={"run": "r"})
    with pytest.raises(
        run.RunFailed, match=r"container engine at unix://.*none\.sock does not do its work.*DOCKER_HOST"
    ):
        container._launch([], tmp_path, {}, print)


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
