"""infra/compose.yaml as a compose tool reads it, and what `make compose` makes for it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import psycopg
import pytest
import yaml
from botocore.exceptions import ClientError
from botocore.stub import Stubber
from mlflow.store.db.utils import _verify_schema
from sqlalchemy import create_engine

from dags import images, places
from dags.runners import container, docker
from infra import airflow_local, build_images, compose, contained
from infra import services as started
from tests.postgres import Postgres, programs

TOOL = shutil.which(
    "podman-compose", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
)
OPERATORS = (places.PROJECT / "docs" / "operators.md").read_text("utf-8")
PINNED = re.compile(r"docker\.io/[a-z/]+:\d+\.\d+[a-z0-9.-]*")
ENDS = {"prepare"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A CSLM_HOME, and the socket of an engine."""
    folder = tmp_path_factory.mktemp("compose")
    with pytest.MonkeyPatch.context() as patch, socket.socket(socket.AF_UNIX) as engine:
        patch.setenv("CSLM_HOME", str(folder / "var"))
        for name in (*compose.PORTS, "CSLM_REGISTRY", "COMPOSE_PROJECT_NAME"):
            patch.delenv(name, raising=False)
        engine.bind(str(folder / "engine.sock"))
        patch.setenv("DOCKER_HOST", f"unix://{folder}/engine.sock")
        yield folder / "var"


@pytest.fixture(scope="module")
def values(home: Path) -> dict[str, str]:
    return compose.settings("docker")


@pytest.fixture(scope="module")
def services(values: dict[str, str]) -> dict[str, Any]:
    """All services as the tool resolves them."""
    return _resolved()


def _resolved() -> dict[str, Any]:
    if TOOL is None:
        pytest.skip("no podman-compose here: make setup")
    command = [TOOL, "--dry-run", "--env-file", str(compose.environment_file()), "--file", str(compose.FILE)]
    read = subprocess.run(
        [*command, "--profile", compose.PREPARE, "config"], capture_output=True, text=True, check=False
    )
    assert read.returncode == 0, read.stderr
    assert "must be set" not in read.stderr
    found = yaml.safe_load(read.stdout)["services"]
    assert {"postgres", "store", "mlflow", "chat", "airflow-api", "airflow-triggerer"} <= set(found)
    return dict(found)


def test_every_image_is_built_here_or_pinned(services: dict[str, Any]) -> None:
    usage = subprocess.run(
        [sys.executable, "-m", "infra.build_images", "--help"], capture_output=True, text=True, check=True
    ).stdout
    own = {images.name(name) for name in compose.IMAGES.values()}
    for name in compose.IMAGES.values():
        assert re.search(rf"\b{name}\b", usage), f"make images builds no {name}"
    for name, service in services.items():
        assert service["image"] in own or PINNED.fullmatch(service["image"]), f"{name}: {service['image']}"


def test_nothing_is_open_but_pages_of_this_machine(services: dict[str, Any], values: dict[str, str]) -> None:
    ports = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert ports == {
        "airflow-api": ["127.0.0.1:8080:8080"],
        "mlflow": ["127.0.0.1:5000:5000"],
        "chat": ["127.0.0.1:7860:7860"],
    }
    assert all("network_mode" not in service for service in services.values())
    reach = {name for name, service in services.items() if values["CSLM_SOCKET"] in str(service.get("volumes"))}
    assert reach == {"airflow-scheduler"}, "who reaches the engine's socket can do everything"


def test_every_service_is_guarded_limited_and_watched(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        assert service["restart"] == ("no" if name in ENDS else "unless-stopped"), name
        assert service["healthcheck"].get("disable", False) is (name in ENDS), name
        assert name in ENDS or service["healthcheck"]["test"][0] == "CMD", name
    writable = {name for name, service in services.items() if not service["read_only"]}
    assert writable == {"postgres", "store", "chat"}


def test_every_variable_is_documented() -> None:
    text = compose.FILE.read_text("utf-8")
    names = re.findall(r"\$\{([A-Z_]+)", text) + re.findall(r"^ +(CSLM_[A-Z_]+):", text, re.MULTILINE)
    for name in set(names):
        assert f"`{name}`" in OPERATORS, name


def test_passwords_are_made_once_and_nobody_else_reads_them(home: Path) -> None:
    first = compose.settings("docker")
    path = compose.environment_file()
    assert path.stat().st_mode & 0o777 == 0o600
    secrets = [first[name] for name in compose.SECRETS]
    assert len(set(secrets)) == len(secrets)
    assert min(map(len, secrets)) >= 32
    assert compose.settings("docker") == first
    assert f"CSLM_MLFLOW_PASSWORD={first['CSLM_MLFLOW_PASSWORD']}\n" in path.read_text("utf-8")


def test_how_tasks_are_carried_out_is_the_environments_choice(
    services: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    retries = ("DEFAULT_TASK_RETRY_DELAY", "DEFAULT_TASK_RETRIES")
    names = [f"AIRFLOW__CORE__{name}" for name in ("EXECUTOR", "PARALLELISM", *retries)]
    scheduler = services["airflow-scheduler"]["environment"]
    own = airflow_local.environment()
    assert [scheduler[name] for name in names] == [own[name] for name in names], "as with make up"
    monkeypatch.setenv(names[-1], "9")
    assert _resolved()["airflow-scheduler"]["environment"][names[-1]] == "9"


def test_a_stage_gets_no_password_that_it_does_not_need(
    services: dict[str, Any], values: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in services["airflow-scheduler"]["environment"].items():
        monkeypatch.setenv(name, value)
    facts = {"run": "r", "commit": "c", "mlflow_run": "m"}
    told = " ".join(container.environment(places.stage_environment(facts), 1, "validate").values())
    known = {name for name in compose.SECRETS if values[name] in told}
    assert known == {"CSLM_STORE_KEY", "CSLM_STORE_SECRET", "CSLM_MLFLOW_PASSWORD"}
    path = compose.environment_file()
    hidden = [mount for mount in docker._mounts() if path.is_relative_to(mount["Target"])]
    assert hidden[-1]["Source"] == str(places.home() / "run" / "nothing"), (
        "of two mounts the deeper one is seen"
    )
    assert docker._network("validate") == "cslm", "where the store is"


def test_what_is_missing_is_said(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = tmp_path / "docker"
    engine.write_text('#!/bin/sh\n[ "$1 $2" != "image inspect" ]\n')
    engine.chmod(0o700)
    monkeypatch.setenv("CONTAINER_ENGINE", str(engine))
    monkeypatch.setattr(sys, "argv", ["compose", "up"])
    assert compose.main() == 1
    assert "make images ONLY='orchestrator'" in capsys.readouterr().err
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:2375")
    assert compose.main() == 1
    assert "no container engine listens at tcp://127.0.0.1:2375" in capsys.readouterr().err


@pytest.mark.skipif(programs() is None, reason="needs PostgreSQL: apt-get install postgresql")
def test_airflow_and_mlflow_have_a_database_each(monkeypatch: pytest.MonkeyPatch) -> None:
    with Postgres() as server:
        where = {"host": "127.0.0.1", "port": server.port}
        variables = {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(server.port),
            "PGUSER": "postgres",
            **server.environment,
        }
        variables |= {variable: f"first-{role}" for role, variable in contained.ROLES.items()}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        contained._make_databases()
        with psycopg.connect(**where, user="mlflow", password="first-mlflow", dbname="mlflow") as own:
            own.execute("CREATE TABLE runs (id int)")
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(**where, user="mlflow", password="first-airflow", dbname="airflow")
        monkeypatch.setenv(contained.ROLES["mlflow"], "it's another")
        contained._make_databases()
        with psycopg.connect(**where, user="mlflow", password="it's another", dbname="mlflow") as own:
            assert own.execute("SELECT count(*) FROM runs").fetchone() == (0,), "what was there stays"
            assert own.execute("SHOW server_encoding").fetchone() == ("UTF8",)


@pytest.mark.parametrize(("found", "made"), [(200, False), (404, True)])
def test_a_bucket_is_made_where_it_is_missing(found: int, made: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else is asked of the store: whose bucket it is may have no right to list all of them."""
    store = boto3.client("s3", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
    monkeypatch.setenv("CSLM_ARTIFACTS", "s3://models/mlflow")
    monkeypatch.setattr(boto3, "client", lambda name: store)
    with Stubber(store) as answers:
        if made:
            answers.add_client_error("head_bucket", str(found), http_status_code=found)
            answers.add_response("create_bucket", {}, {"Bucket": "models"})
        else:
            answers.add_response("head_bucket", {}, {"Bucket": "models"})
        contained._make_bucket()
        answers.assert_no_pending_responses()
        answers.add_client_error("head_bucket", "403", http_status_code=403)
        with pytest.raises(ClientError):
            contained._make_bucket()


@pytest.mark.parametrize(
    ("lock", "wanted", "unwanted"),
    [
        (
            "orchestrator",
            {"apache-airflow", "dvc", "mlflow", "flask-wtf"},
            {"pytest", "ruff", "import-linter", "kubeflow-trainer-api"},
        ),
        ("components", {"torch", "deepspeed", "pyyaml"}, {"pytest", "mypy", "playwright", "types-pyyaml"}),
    ],
)
def test_an_image_has_no_tests_and_linters(lock: str, wanted: set[str], unwanted: set[str]) -> None:
    packages = {pin.partition("==")[0] for pin in build_images._locked(lock)}
    assert wanted <= packages
    assert not unwanted & packages


@pytest.mark.parametrize("lock", [*build_images.ENVIRONMENTS.values(), "dvc", "orchestrator"])
def test_every_environment_has_the_client_of_the_store(lock: str) -> None:
    """MLflow and DVC import it only when they are asked for a file in a store."""
    assert {"boto3", "aiobotocore"} & {pin.partition("==")[0] for pin in build_images._locked(lock)}


@pytest.mark.skipif(programs() is None, reason="needs PostgreSQL: apt-get install postgresql")
def test_prepare_brings_mlflows_database_up_to_its_release(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twice, as an upgrade does it again; the bucket and Airflow's tables are other tests'."""
    monkeypatch.setattr(contained, "_make_bucket", lambda: None)
    monkeypatch.setattr(airflow_local, "migrate", lambda again: None)
    monkeypatch.setattr(started, "make_pools", lambda: None)
    with Postgres() as server:
        variables = {"PGHOST": "127.0.0.1", "PGPORT": str(server.port), "PGUSER": "postgres"}
        variables |= {**server.environment} | dict.fromkeys(contained.ROLES.values(), "it's secret")
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        for _ in range(2):
            assert contained.prepare() == 0
            own = f"postgresql://mlflow:{quote(variables[contained.ROLES['mlflow']])}@127.0.0.1:{server.port}/mlflow"
            _verify_schema(create_engine(own))  # MLflow's own, which its server begins with
    assert "secret" not in capsys.readouterr().out
