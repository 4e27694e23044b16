"""What the tasks of all DAGs have in common: an owner, patience with machines, the object store's keys, and who
is told of a failure, or that a person is waited for.

A failure that is explained (a bad parameter, a stage that ended with an error, a refused promotion) is final.
What is tried again is a task whose process or machine went away, whose stage was told to end (SIGTERM), or
whose store, MLflow or cluster does not answer or says that it cannot work (5xx); trainings go on from their
last checkpoint. How often and after what pauses, say Airflow's `core.default_task_retries` and
`default_task_retry_delay`: 4 with `make up`, over seven minutes; `make demo` goes on when typed again.
"""

from __future__ import annotations

import json
import logging
import os
import urllib.request
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from airflow.sdk import BaseNotifier, Context

from dags import store_connection

log = logging.getLogger("airflow.task")
WEBHOOK = "CSLM_FAILURE_WEBHOOK"
"""Environment variable: URL that gets a POST with JSON for every failed task, and where a person is asked."""
AIRFLOW_URL = "CSLM_AIRFLOW_URL"
"""Environment variable: where people open Airflow's pages, if that is not this machine's own address."""
WEBHOOK_TIMEOUT_S = 10
LONGEST = timedelta(hours=2)
"""What a task may take that is no stage, before Airflow stops it."""


def tell(context: Mapping[str, Any]) -> None:
    """Say in the log, and to the webhook if there is one, that a task has failed for good."""
    facts = _facts(context, error=str(context.get("exception", "")))
    log.error("%(dag)s, run %(run)s: task %(task)s has failed: %(error)s", facts)
    _post(facts)


class Asking(BaseNotifier):
    """Says to the webhook, if there is one, what a task asks a person."""

    def notify(self, context: Context) -> None:
        """Called by Airflow's operator before it waits for the answer."""
        _post(_facts(context, asks=str(context["task"].subject)))  # type: ignore[attr-defined]


def _facts(context: Mapping[str, Any], **what: str) -> dict[str, str]:
    """What a webhook is told of a task; the link leads to its log, or to the question that it asks."""
    task = context["ti"]
    link = urlsplit(task.log_url)
    if page := os.environ.get(AIRFLOW_URL):
        link = urlsplit(page.rstrip("/") + urlunsplit(("", "", *link[2:])))
    return {"dag": task.dag_id, "run": task.run_id, "task": task.task_id, **what, "log": urlunsplit(link)}


def _post(facts: dict[str, str]) -> None:
    url = os.environ.get(WEBHOOK)
    if not url:
        return
    body, headers = json.dumps(facts).encode(), {"Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=WEBHOOK_TIMEOUT_S):
            pass
    except (OSError, ValueError) as error:
        # Whoever knows the URL may post to it, so neither it nor an error that quotes it is logged.
        log.warning("the webhook of %s could not be told: %s", WEBHOOK, type(error).__name__)


def arguments(owner: str) -> dict[str, Any]:
    """`default_args` of a DAG."""
    return {
        "owner": owner,
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(minutes=15),
        "execution_timeout": LONGEST,
        "pre_execute": store_connection.take_over,
        "on_failure_callback": tell,
    }
