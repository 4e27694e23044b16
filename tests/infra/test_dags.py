"""`make dags` lists what Airflow would show, and fails where it would show nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dags import runners
from tests.dags import toy


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make(tmp_path_factory.mktemp("toy") / "project")


def listed(project: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra.dags"]
    environment = toy.environment(project)
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


LIMITS = """
import json
from airflow.dag_processing.dagbag import DagBag
from dags import places
bag = DagBag(places.PROJECT / "dags")
seconds = {
    f"{dag.dag_id}.{task.task_id}": task.execution_timeout and task.execution_timeout.total_seconds()
    for dag in bag.dags.values() for task in dag.tasks
}
print("LIMITS" + json.dumps(seconds))
"""


def limits_of(project: Path, stage_hours: str) -> dict[str, float]:
    """DAG.task -> seconds that it may take."""
    environment = toy.environment(project) | {
        "AIRFLOW_HOME": str(project / "var" / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "CSLM_STAGE_HOURS": stage_hours,
    }
    result = subprocess.run(
        [sys.executable, "-c", LIMITS],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout.partition("LIMITS")[2]))


def test_all_dags_are_listed_with_their_schedules(project: Path) -> None:
    result = listed(project)
    assert result.returncode == 0, result.stderr
    starts = dict(line.split(None, 1) for line in result.stdout.splitlines()[::2])
    assert starts == {
        "cslm_train": "by hand",
        "cslm_retrain": "at 0 2 * * * UTC, or when cslm-corpus changes",
        "cslm_promote": "when cslm-candidate changes",
        "cslm_rollback": "by hand",
        "cslm_add_language": "by hand",
    }


def test_no_task_may_take_for_ever(project: Path) -> None:
    limits = limits_of(project, "1.5")
    assert len({name.split(".")[0] for name in limits}) == 5
    assert None not in limits.values()
    stages = {limits[f"cslm_train.{name}"] for name in ("ingest", "double", "final", "register")}
    assert stages == {5400}, "one and a half hours"
    assert limits["cslm_train.prepare"] < limits["cslm_add_language.train"]


@pytest.mark.parametrize("hours", ["0", "-1", "two", "nan", "1e99"])
def test_a_limit_that_is_no_time_is_refused(monkeypatch: pytest.MonkeyPatch, hours: str) -> None:
    monkeypatch.setenv("CSLM_STAGE_HOURS", hours)
    with pytest.raises(ValueError, match=r"CSLM_STAGE_HOURS='.*': how many hours"):
        runners.longest_stage()


def test_a_dag_that_cannot_be_imported_is_named(project: Path) -> None:
    (project / "dags" / "cslm_broken.py").write_text("from airflow.sdk import DAG\nimport no_such_module\n")
    result = listed(project)
    assert result.returncode == 1
    assert "cslm_broken.py cannot be imported" in result.stderr and "no_such_module" in result.stderr
