"""`make up`, a run triggered over the API as the page does it, `make down`: real services, toy project."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dags import toy


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make(tmp_path_factory.mktemp("toy") / "project")


@pytest.fixture(scope="module")
def ports() -> dict[str, str]:
    return {"AIRFLOW_PORT": str(_free_port()), "MLFLOW_PORT": str(_free_port())}


@pytest.fixture(scope="module")
def services(project: Path, ports: dict[str, str]) -> Iterator[str]:
    """What `up` printed; `down` at the end, even of a failed test."""
    up = _services(project, ports, "up")
    try:
        assert up.returncode == 0, up.stdout + up.stderr
        yield up.stdout
    finally:
        _services(project, ports, "down")


def test_taken_port_is_an_error_that_says_which(project: Path, ports: dict[str, str]) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = str(holder.getsockname()[1])
        result = _services(project, ports | {"MLFLOW_PORT": taken}, "up")
    assert result.returncode == 1
    assert f"port {taken} is taken" in result.stderr
    assert "MLFLOW_PORT=" in result.stderr
    assert _processes(project) == []


def test_run_triggered_over_the_api_gives_what_the_demo_gives(
    services: str, project: Path, ports: dict[str, str]
) -> None:
    password_file = project / "var" / "airflow" / "passwords.json"
    password = json.loads(password_file.read_text())["admin"]
    assert password in services
    assert password_file.stat().st_mode & 0o077 == 0
    airflow = f"http://127.0.0.1:{ports['AIRFLOW_PORT']}"
    assert airflow in services
    assert _call(f"http://127.0.0.1:{ports['MLFLOW_PORT']}/health", text=True) == "OK"

    token = _call(f"{airflow}/auth/token", {"username": "admin", "password": password})["access_token"]
    conf = {"name": "triggered", "overrides": {"final.plus": 4}}
    runs = f"{airflow}/api/v2/dags/cslm_train/dagRuns"
    run = _call(runs, {"logical_date": None, "conf": conf}, token)["dag_run_id"]
    deadline = time.monotonic() + 200
    while (state := _call(f"{runs}/{run}", token=token)["state"]) not in ("success", "failed"):
        assert time.monotonic() < deadline, f"the run is {state} for too long"
        time.sleep(1)
    assert state == "success"
    evaluation = json.loads(
        (project / "var" / "runs" / "triggered" / "metrics" / "evaluation.json").read_text()
    )
    assert evaluation["asr"]["en"]["wer"] == 0.046
    assert toy.run(project, "git", "ls-tree", "--name-only", "runs/triggered", "dvc.lock").strip() == "dvc.lock"


def test_demo_is_refused_while_airflow_runs(services: str, project: Path) -> None:
    result = toy.demo(project, RUN="beside")
    assert result.returncode == 2
    assert "make down" in result.stderr


def test_down_leaves_no_process(services: str, project: Path, ports: dict[str, str]) -> None:
    assert len(_processes(project)) > 4
    again = _services(project, ports, "up")
    assert again.returncode == 1
    assert "already running" in again.stderr
    result = _services(project, ports, "down")
    assert result.returncode == 0, result.stderr
    assert _processes(project) == []
    for port in ports.values():
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(port))) != 0


def _services(project: Path, ports: dict[str, str], action: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "infra.services", action],
        cwd=project,
        env=toy.environment(project) | ports,
        capture_output=True,
        text=True,
        check=False,
    )


def _processes(project: Path) -> list[int]:
    """Living processes that work in the project's var/ folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            folder = (path / "cwd").readlink()
        except OSError:
            continue
        if folder.is_relative_to(project / "var"):
            found.append(int(path.name))
    return found


def _call(url: str, body: dict[str, Any] | None = None, token: str = "", text: bool = False) -> Any:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(url, json.dumps(body).encode() if body else None, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        content = answer.read()
    return content.decode() if text else json.loads(content)
