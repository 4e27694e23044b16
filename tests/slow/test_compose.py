"""`make compose` in podman; PostgreSQL and the S3 server are this machine's, as no registry can be reached."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import object_store
from tests.end_to_end.checkout import ORCHESTRATOR, ROOT, environment
from tests.infra import running
from tests.postgres import programs
from tests.slow import podman

NETAVARK = Path("/usr/lib/podman/netavark")
BACKEND = '[network]\nnetwork_backend = "netavark"\nnetwork_config_dir = "{folder}"\n'
"""What lets containers find each other by name; podman's older backend cannot."""

pytestmark = [
    pytest.mark.timeout(1800),
    podman.NEEDED,
    pytest.mark.skipif(programs() is None, reason="needs PostgreSQL: apt-get install postgresql"),
    pytest.mark.skipif(not NETAVARK.exists(), reason="needs apt-get install netavark aardvark-dns"),
]


@pytest.fixture(scope="module")
def pages(
    clone: Path, engine: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """All services, and the variables that they were started with."""
    podman.build(clone, engine, ["orchestrator", "chat"])
    object_store.install()
    folder = tmp_path_factory.mktemp("netavark")
    (folder / "containers.conf").write_text(podman.CONFIGURATION + BACKEND.format(folder=folder))
    store = object_store.WRITER
    secrets = clone / "var" / "airflow" / "compose.env"
    secrets.parent.mkdir(parents=True, exist_ok=True)
    secrets.write_text(f"CSLM_STORE_KEY={store.access}\nCSLM_STORE_SECRET={store.secret}\n")
    variables = (
        engine
        | running.ports()
        | {
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CHAT_PORT": running.ports()["AIRFLOW_PORT"],
            "COMPOSE_PROJECT_NAME": f"cslm-test-{os.getpid()}",
            "COMPOSE_FILE": f"infra/compose.yaml:{ROOT}/tests/slow/compose/override.yaml",
            "TRIAL_ROOT": str(ROOT),
            "TRIAL_ENVIRONMENTS": str((ROOT / ".venv").resolve()),
            "TRIAL_PYTHON": sys.base_prefix,
        }
    )
    up = _compose(clone, variables, "up")
    try:
        assert up.returncode == 0, up.stdout + up.stderr
        yield variables | {"said": up.stdout}
    finally:
        down = _compose(clone, variables, "down")
        for volume in ("postgres", "store"):
            podman.run(variables, "volume", "rm", "--force", f"{variables['COMPOSE_PROJECT_NAME']}_{volume}")
    assert down.returncode == 0, down.stdout + down.stderr
    left = podman.run(variables, "ps", "--all", "--quiet", f"--filter=name={variables['COMPOSE_PROJECT_NAME']}")
    assert left.stdout == "", "a container is left"


def test_mlflow_answers_only_those_who_know_its_password(clone: Path, pages: dict[str, str]) -> None:
    address = f"http://127.0.0.1:{pages['MLFLOW_PORT']}/api/2.0/mlflow/experiments/search"
    settings = dict(line.split("=", 1) for line in (clone / "var/airflow/compose.env").read_text().splitlines())
    for password, code in (("", 401), ("guessed-password", 401), (settings["CSLM_MLFLOW_PASSWORD"], 200)):
        request = urllib.request.Request(address, json.dumps({"max_results": 5}).encode())
        request.add_header("Content-Type", "application/json")
        if password:
            known = base64.b64encode(f"admin:{password}".encode()).decode()
            request.add_header("Authorization", f"Basic {known}")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                found = answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            found = error.code, {}
        assert found[0] == code
    assert found[1]["experiments"][0]["artifact_location"].startswith("s3://cslm/mlflow")


def test_airflow_has_the_dags_and_hears_of_all_its_parts(clone: Path, pages: dict[str, str]) -> None:
    airflow, token = running.airflow(clone, pages)
    dags = running.until(lambda: running.call(f"{airflow}/api/v2/dags", token=token)["dags"])
    assert {"cslm_train", "cslm_retrain", "cslm_promote", "cslm_rollback"} <= {dag["dag_id"] for dag in dags}
    assert running.call(f"{airflow}/api/v2/importErrors", token=token)["total_entries"] == 0
    health = running.call(f"{airflow}/api/v2/monitor/health", token=token)
    assert {part["status"] for part in health.values()} == {"healthy"}


def test_their_own_checks_find_them_healthy(pages: dict[str, str]) -> None:
    """Asked by hand, as podman asks only where systemd runs."""
    airflow = [f"airflow-{part}" for part in ("api", "scheduler", "dag-processor", "triggerer")]
    for name in ("postgres", "mlflow", *airflow):
        asked = ["healthcheck", "run", f"{pages['COMPOSE_PROJECT_NAME']}_{name}_1"]
        running.until(lambda asked=asked: podman.run(pages, *asked).returncode == 0)  # on a busy machine later


def test_the_chat_page_waits_for_a_model(pages: dict[str, str]) -> None:
    def said() -> bool:
        log = podman.run(pages, "logs", f"{pages['COMPOSE_PROJECT_NAME']}_chat_1")
        return "no version of cslm is registered at http://mlflow:5000 yet" in log.stdout + log.stderr

    running.until(said)


def _compose(clone: Path, variables: dict[str, str], action: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ORCHESTRATOR, "-m", "infra.compose", action],
        cwd=clone,
        env=environment(clone) | variables,
        capture_output=True,
        text=True,
        check=False,
    )
