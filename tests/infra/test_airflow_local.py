"""What a user's environment may say of Airflow's configuration, and what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra import airflow_local


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CSLM_HOME", str(tmp_path))
    for name in ("AIRFLOW__CORE__EXECUTOR", "AIRFLOW__CORE__PARALLELISM", "CSLM_AIRFLOW_DATABASE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_the_executor_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert airflow_local.environment()["AIRFLOW__CORE__EXECUTOR"] == "LocalExecutor"
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv("AIRFLOW__CELERY__BROKER_URL", "redis://broker:6379/0")
    chosen = airflow_local.environment()
    assert chosen["AIRFLOW__CORE__EXECUTOR"] == "CeleryExecutor"
    assert chosen["AIRFLOW__CELERY__BROKER_URL"] == "redis://broker:6379/0"
    assert chosen["AIRFLOW__CORE__PARALLELISM"] == "4", "what is not chosen stays"


def test_another_airflow_of_the_same_user_is_left_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {
        "AIRFLOW_HOME": "/their/airflow",
        "AIRFLOW__CORE__DAGS_FOLDER": "/their/dags",
        "AIRFLOW__CORE__FERNET_KEY": "theirs",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql://their/database",
        "AIRFLOW__API__HOST": "0.0.0.0",
        "AIRFLOW__API_AUTH__JWT_SECRET": "theirs",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": "/their/logs",
    }
    for name, value in theirs.items():
        monkeypatch.setenv(name, value)
    ours = airflow_local.environment()
    assert {name for name, value in theirs.items() if ours[name] == value} == set()
    assert ours["AIRFLOW__LOGGING__BASE_LOG_FOLDER"] == str(home / "airflow" / "logs")
