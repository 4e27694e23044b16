"""`make up` with Airflow and MLflow on a real PostgreSQL server, and a run through it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dags import toy
from tests.infra import running
from tests.postgres import Postgres, programs

pytestmark = pytest.mark.skipif(programs() is None, reason="needs PostgreSQL: apt-get install postgresql")


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres("airflow", "mlflow") as server:
        yield server


def test_airflow_and_mlflow_keep_all_in_postgresql(tmp_path: Path, server: Postgres) -> None:
    project = toy.make(tmp_path / "project")
    variables = running.ports() | server.environment
    variables |= {
        "CSLM_AIRFLOW_DATABASE": server.url("airflow"),
        "MLFLOW_TRACKING_URI": server.url("mlflow"),
    }
    up = running.services(project, variables, "up")
    try:
        assert up.returncode == 0, up.stdout + up.stderr
        airflow, token = running.airflow(project, variables)
        runs = f"{airflow}/api/v2/dags/cslm_train/dagRuns"
        run = running.call(runs, {"logical_date": None, "conf": {"name": "first"}}, token)["dag_run_id"]
        assert running.ended(f"{runs}/{run}", token) == "success"
    finally:
        down = running.services(project, variables, "down")
    assert down.returncode == 0, down.stderr
    assert server.query("airflow", "SELECT state FROM dag_run WHERE dag_id = 'cslm_train'") == ["success"]
    named = "SELECT value FROM tags WHERE key = 'pipeline_run'"
    assert set(server.query("mlflow", named)) == {"first"}
    assert not (project / "var" / "mlflow.db").exists()
    assert not (project / "var" / "airflow" / "airflow.db").exists()
    _copy_and_bring_back(project, variables, server)
    for log in (project / "var" / "logs").rglob("*.log"):
        assert server.environment["PGPASSWORD"] not in log.read_text(errors="replace"), log


def _copy_and_bring_back(project: Path, variables: dict[str, str], server: Postgres) -> None:
    """Both databases by the commands of docs/operators.md, after they were lost."""
    text = (toy.CHECKOUT / "docs" / "operators.md").read_text("utf-8")
    blocks = re.findall(r"```bash\n(pg_[^`]+)```", text)
    named = "SELECT value FROM tags WHERE key = 'pipeline_run'"
    for commands, lost in zip(blocks, (False, True), strict=True):
        if lost:
            for database in ("airflow", "mlflow"):
                server.query(database, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        subprocess.run(
            ["bash", "-e", "-c", commands], cwd=project, env=toy.environment(project) | variables, check=True
        )
    assert server.query("airflow", "SELECT state FROM dag_run WHERE dag_id = 'cslm_train'") == ["success"]
    assert set(server.query("mlflow", named)) == {"first"}
