"""Start and stop the services of a toy project, and speak to Airflow over its API as its page does."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.dags import toy

LIMIT_S = 120
READING_S = 12
"""What a person takes to read a question of Airflow's.

An answer that comes before the scheduler has seen the asking process end is lost (Airflow 3.3 takes the end for
the one of the process that goes on, and the task fails or asks again); it sees it up to 6 s later.
"""


def ports() -> dict[str, str]:
    """Free ports, as `make up` takes them."""
    return {"AIRFLOW_PORT": str(_free_port()), "MLFLOW_PORT": str(_free_port())}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def services(project: Path, ports: dict[str, str], action: str) -> subprocess.CompletedProcess[str]:
    """`make up` or `make down`."""
    return subprocess.run(
        [toy.PYTHON, "-m", "infra.services", action],
        cwd=project,
        env=toy.environment(project) | ports,
        capture_output=True,
        text=True,
        check=False,
    )


def airflow(project: Path, ports: dict[str, str]) -> tuple[str, str]:
    """Airflow's address, and a token to speak to it as its admin."""
    address = f"http://127.0.0.1:{ports['AIRFLOW_PORT']}"
    password = json.loads((project / "var" / "airflow" / "passwords.json").read_text())["admin"]
    return address, call(f"{address}/auth/token", {"username": "admin", "password": password})["access_token"]


def until(ask: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
    """The first answer that is something."""
    deadline = time.monotonic() + limit_s
    while not (answer := ask()):
        assert time.monotonic() < deadline, "nothing came for too long"
        time.sleep(1)
    return answer


def ended(run: str, token: str, limit_s: float = LIMIT_S) -> str:
    """State in which a run of a DAG ends."""

    def state() -> str:
        now = str(call(run, token=token)["state"])
        return now if now in ("success", "failed") else ""

    return str(until(state, limit_s))


def clear(dag: str, run: str, task: str, token: str) -> None:
    """Clear a task of a run, as the page does."""
    body = {"dry_run": False, "only_failed": False, "dag_run_id": run, "task_ids": [task]}
    call(f"{dag}/clearTaskInstances", body, token)


def call(
    url: str,
    body: dict[str, Any] | None = None,
    token: str = "",
    text: bool = False,
    method: str | None = None,
) -> Any:
    """Answer of a server, read as JSON unless `text`."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(url, json.dumps(body).encode() if body else None, headers, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        content = answer.read()
    return content.decode() if text else json.loads(content)


class Airflow:
    """A running Airflow, as its page speaks to it."""

    def __init__(self, address: str, token: str) -> None:
        self._address, self._token = address, token

    def call(self, path: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
        """Its answer; the page's own calls are under /api/v2 and /ui."""
        return call(f"{self._address}{path}", body, self._token, method=method)

    def train(self, name: str, overrides: dict[str, Any] | None = None) -> str:
        """Trigger `cslm_train`; path of the run."""
        runs, conf = "/api/v2/dags/cslm_train/dagRuns", {"name": name, "overrides": overrides or {}}
        return f"{runs}/{self.call(runs, {'logical_date': None, 'conf': conf})['dag_run_id']}"

    def ended(self, run: str, limit_s: float = LIMIT_S) -> str:
        """State in which a run ends."""
        return ended(f"{self._address}{run}", self._token, limit_s)

    def tries(self, run: str, task: str) -> int:
        """How often a task of a run was tried."""
        return int(self.call(f"{run}/taskInstances/{task}")["try_number"])

    def log(self, run: str, task: str) -> str:
        """What the first try of a task has logged."""
        return json.dumps(self.call(f"{run}/taskInstances/{task}/logs/1"), ensure_ascii=False)


@contextmanager
def started(project: Path, **variables: str) -> Iterator[Airflow]:
    """The services of a toy project in such an environment; what is tried again soon is."""
    given = ports() | {"AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "5"} | variables
    up = services(project, given, "up")
    try:
        assert up.returncode == 0, up.stdout + up.stderr
        there = Airflow(*airflow(project, given))
        until(lambda: there.call("/api/v2/dags?dag_id_pattern=cslm_train")["total_entries"])
        yield there
    finally:
        services(project, given, "down")
