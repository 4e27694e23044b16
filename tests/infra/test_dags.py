"""`make dags` lists what Airflow would show, and fails where it would show nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.dags import toy


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make(tmp_path_factory.mktemp("toy") / "project")


def listed(project: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra.dags"]
    environment = toy.environment(project)
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


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


def test_a_dag_that_cannot_be_imported_is_named(project: Path) -> None:
    (project / "dags" / "cslm_broken.py").write_text("from airflow.sdk import DAG\nimport no_such_module\n")
    result = listed(project)
    assert result.returncode == 1
    assert "cslm_broken.py cannot be imported" in result.stderr and "no_such_module" in result.stderr
