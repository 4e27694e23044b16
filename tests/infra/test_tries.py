"""What Airflow does for the tasks of stages: another try, and the keys of a connection as its page stores it.

Real services, a real object store, a toy project. Stages in containers and pods: tests/slow/test_tries.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dags import toy
from tests.infra import running
from tests.object_store import BUCKET, WRITER, ObjectStore

LIMIT_S = 300
AGAIN = {"final.mode": "preempted", "final.plus": 70}
"""The first try writes a checkpoint and ends as a training does that is told to."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make(tmp_path_factory.mktemp("toy") / "project")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with ObjectStore(tmp_path_factory.mktemp("store"), tls=True) as server:
        server.client(WRITER).create_bucket(Bucket=BUCKET)
        yield server


@pytest.fixture(scope="module")
def airflow(project: Path, store: ObjectStore) -> Iterator[running.Airflow]:
    """Airflow, whose stages share a store that its environment knows no keys of."""
    with running.started(project, CSLM_DVC_REMOTE=f"s3://{BUCKET}/dvc", AWS_ACCESS_KEY_ID="wrong") as there:
        yield there


def test_the_type_of_the_connection_is_one_that_the_page_offers(airflow: running.Airflow) -> None:
    """As docs/operators.md names it: Airflow's package for `aws` is not installed."""
    offered = {each["hook_name"] for each in airflow.call("/ui/connections/hook_meta")}
    assert "Generic" in offered
    assert "Amazon Web Services" not in offered


def test_what_the_page_offers_and_a_store_does_not_use_is_refused(
    airflow: running.Airflow, store: ObjectStore
) -> None:
    airflow.call("/api/v2/connections", _typed(store) | {"host": store.url, "extra": ""})
    run = airflow.train("typed-wrongly")
    assert airflow.ended(run, LIMIT_S) == "failed"
    said = airflow.log(run, "prepare")
    assert "connection cslm_s3 has a host, which is not used: the store's address is endpoint_url in" in said


def test_stages_work_with_the_connection_that_was_typed_into_the_page(
    airflow: running.Airflow, project: Path, store: ObjectStore
) -> None:
    airflow.call("/api/v2/connections/cslm_s3", _typed(store), method="PATCH")
    run = airflow.train("typed", {"final.plus": 41})
    assert airflow.ended(run, LIMIT_S) == "success", airflow.log(run, "final")
    assert store.holds(b"83"), "two times 21, and 41"
    said = airflow.log(run, "final")
    assert "connection cslm_s3 gives AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_" in said
    shown = json.dumps(airflow.call("/api/v2/connections/cslm_s3"))
    kept = [file for file in (project / "var").rglob("*") if file.is_file() and not file.is_symlink()]
    assert WRITER.secret not in said + shown
    assert [file for file in kept if WRITER.secret.encode() in file.read_bytes()] == [], "a secret lies open"


def test_a_stage_that_was_told_to_end_is_tried_again_and_goes_on(
    airflow: running.Airflow, project: Path
) -> None:
    run = airflow.train("told", AGAIN)
    assert airflow.ended(run, LIMIT_S) == "success", airflow.log(run, "final")
    assert airflow.tries(run, "final") == 2
    assert "stage final failed (it goes on when it is tried again)" in airflow.log(run, "final")
    states = [each for each in toy.events(project, "told") if each["stage"] == "final"]
    assert [each["state"] for each in states] == ["started", "failed", "started", "ran"]
    assert states[-1]["text"] == "goes on from step 20"
    assert toy.calls(project)[-2:] == ["final", "final"]


def test_a_stage_whose_store_is_away_for_a_while_is_tried_again_and_does_nothing_twice(
    airflow: running.Airflow, project: Path, store: ObjectStore
) -> None:
    run = airflow.train("away", {"final.mode": "wait", "final.plus": 80})
    running.until((project / "var" / "waits").exists, LIMIT_S)
    store.stop()
    (project / "var" / "go").touch()
    state = f"{run}/taskInstances/final"
    running.until(lambda: airflow.call(state)["state"] == "up_for_retry", LIMIT_S)
    store.start()
    assert airflow.ended(run, LIMIT_S) == "success", airflow.log(run, "final")
    assert "(CSLM_DVC_REMOTE), does not do its work" in airflow.log(run, "final")
    assert airflow.tries(run, "final") == 2
    assert toy.calls(project)[-1:] == ["final"]
    assert [each["state"] for each in toy.events(project, "away") if each["stage"] == "final"][-1] == "cached"
    assert store.holds(b"122"), "two times 21, and 80"


def test_a_stage_that_fails_by_itself_is_not_tried_again(airflow: running.Airflow, project: Path) -> None:
    run = airflow.train("fails", {"final.mode": "fail"})
    assert airflow.ended(run, LIMIT_S) == "failed"
    assert airflow.tries(run, "final") == 1
    assert "final: the number 13 is unlucky" in airflow.log(run, "final")
    assert toy.calls(project)[-1:] == ["final"]


def _typed(store: ObjectStore) -> dict[str, Any]:
    """What the page sends of a filled form."""
    extra = {"endpoint_url": store.url, "region_name": "us-east-1", "verify": str(store.authority)}
    return {
        "connection_id": "cslm_s3",
        "conn_type": "generic",
        "description": "",
        "host": "",
        "login": WRITER.access,
        "password": WRITER.secret,
        "schema": "",
        "port": None,
        "extra": json.dumps(extra, indent=2),
    }
