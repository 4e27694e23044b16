"""A failed task is told: in the log, and to a real web server if one is named."""

from __future__ import annotations

import http.server
import json
import logging
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from dags import defaults

CONTEXT: dict[str, Any] = {
    "ti": SimpleNamespace(dag_id="cslm_train", run_id="r1", task_id="finetune", log_url="http://airflow/log"),
    "exception": ValueError("no space left"),
}


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Address of a web server, and what it was told."""
    told: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    web = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{web.server_port}/hook?token=secret", told
    web.shutdown()


def test_a_failure_reaches_the_webhook(
    server: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, told = server
    monkeypatch.setenv(defaults.WEBHOOK, url)
    defaults.tell(CONTEXT)
    [facts] = told
    assert (facts["dag"], facts["task"], facts["error"]) == ("cslm_train", "finetune", "no space left")


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:9/secret/hook?token=secret", "no secret address"])
def test_without_a_webhook_it_is_in_the_log(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(defaults.WEBHOOK, url)
    with caplog.at_level(logging.WARNING, "airflow.task"):
        defaults.tell(CONTEXT)
    assert "task finetune has failed: no space left" in caplog.text
    assert "secret" not in caplog.text
