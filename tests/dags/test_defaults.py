"""A failed task is told: in the log, and to a real web server if one is named."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from dags import defaults
from tests import webhook

LOG = "http://127.0.0.1:8080/dags/cslm_train/runs/r%201/tasks/finetune?try_number=1"
CONTEXT: dict[str, Any] = {
    "ti": SimpleNamespace(dag_id="cslm_train", run_id="r1", task_id="finetune", log_url=LOG),
    "exception": ValueError("no space left"),
}


def test_a_failure_reaches_the_webhook(monkeypatch: pytest.MonkeyPatch) -> None:
    with webhook.listening() as (url, told):
        monkeypatch.setenv(defaults.WEBHOOK, url)
        defaults.tell(CONTEXT)
    [facts] = told
    assert (facts["dag"], facts["task"], facts["error"]) == ("cslm_train", "finetune", "no space left")
    assert facts["log"] == LOG


@pytest.mark.parametrize("page", ["https://ml.example.org/airflow", "https://ml.example.org/airflow/"])
def test_a_link_leads_to_where_people_open_airflow(monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    monkeypatch.setenv(defaults.AIRFLOW_URL, page)
    with webhook.listening() as (url, told):
        monkeypatch.setenv(defaults.WEBHOOK, url)
        defaults.tell(CONTEXT)
    [facts] = told
    assert (
        facts["log"] == "https://ml.example.org/airflow/dags/cslm_train/runs/r%201/tasks/finetune?try_number=1"
    )


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:9/secret/hook?token=secret", "no secret address"])
def test_without_a_webhook_it_is_in_the_log(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(defaults.WEBHOOK, url)
    with caplog.at_level(logging.WARNING, "airflow.task"):
        defaults.tell(CONTEXT)
    assert "task finetune has failed: no space left" in caplog.text
    assert "secret" not in caplog.text
