"""Stages of a toy project in containers and in pods: whose keys the object store sees, and what is tried again.

Airflow's services, a real object store and podman; pods by tests/slow/cluster.py.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.dags import toy
from tests.infra import running
from tests.object_store import BUCKET, WRITER, ObjectStore
from tests.slow import podman
from tests.slow.cluster import Cluster, serve

pytestmark = [pytest.mark.timeout(1800), podman.NEEDED]
LIMIT_S = 600
SECRET = "cslm-store"


class There(NamedTuple):
    """An Airflow whose stages work elsewhere."""

    airflow: running.Airflow
    project: Path
    store: ObjectStore
    engine: dict[str, str]
    cluster: Cluster | None


@pytest.fixture(scope="module")
def image(clone: Path, engine: dict[str, str]) -> str:
    """One that has DVC and Python, which is all that the toy needs."""
    return podman.build(clone, engine, ["validate"])["validate"]


@pytest.fixture(scope="module", params=["docker", "kubernetes"])
def there(
    request: pytest.FixtureRequest,
    image: str,
    engine: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[There]:
    """With the connection as Airflow's page stores it; no variable has keys of the store."""
    folder = tmp_path_factory.mktemp(request.param)
    project, cluster, variables = toy.make(folder / "project"), None, {**engine, "CSLM_RUNNER": request.param}
    assert podman.run(engine, "tag", image, toy.contained(project)).returncode == 0
    (folder / "store").mkdir()
    with ObjectStore(folder / "store", tls=True) as store, pytest.MonkeyPatch.context() as patch:
        store.client(WRITER).create_bucket(Bucket=BUCKET)
        assert store.authority is not None
        authority = shutil.copy(store.authority, project / "var")  # a pod sees the volume alone
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
            patch.delenv(name, raising=False)
        if request.param == "kubernetes":
            cluster = Cluster(engine, {"cslm": project}, {SECRET: {}}, network="host")
            variables |= {
                "CSLM_KUBERNETES_CLAIM": "cslm",
                "CSLM_KUBERNETES_MOUNT": str(project),
                "CSLM_KUBERNETES_SECRET": SECRET,
            }
        with serve(cluster or Cluster(engine, {}, {}), folder) as reached:
            variables |= reached | {"CSLM_DVC_REMOTE": f"s3://{BUCKET}/dvc"}
            variables |= {"AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "2"}  # nothing has to come back first
            with running.started(project, **variables) as airflow:
                extra = {"endpoint_url": store.url, "region_name": "us-east-1", "verify": str(authority)}
                typed = {"connection_id": "cslm_s3", "conn_type": "generic", "extra": json.dumps(extra)}
                typed |= {"login": WRITER.access, "password": WRITER.secret}
                airflow.call("/api/v2/connections", typed)
                yield There(airflow, project, store, engine, cluster)


def test_a_pod_without_keys_says_whose_it_would_have(there: There) -> None:
    if there.cluster is None:
        pytest.skip("a container has those of the connection")
    run = there.airflow.train("no-keys")
    assert there.airflow.ended(run, LIMIT_S) == "failed"
    [failed] = [event for event in toy.events(there.project, "no-keys") if event["state"] == "failed"]
    assert "does not do its work: Unable to locate credentials" in failed["cause"]
    assert "(a pod has the keys of the Secret cslm-store alone)" in failed["cause"]
    there.cluster.secrets[SECRET] |= {
        "AWS_ACCESS_KEY_ID": WRITER.access,
        "AWS_SECRET_ACCESS_KEY": WRITER.secret,
    }


def test_a_stage_works_with_the_store_of_the_connection(there: There) -> None:
    run = there.airflow.train("stored", {"final.plus": 41})
    assert there.airflow.ended(run, LIMIT_S) == "success", there.airflow.log(run, "final")
    assert there.store.holds(b"83"), "two times 21, and 41"
    if there.cluster is not None:
        assert WRITER.secret not in str(there.cluster.created), "a pod's description can be read"
    assert WRITER.secret not in there.airflow.log(run, "final")


def test_a_stage_that_was_told_to_end_is_tried_again_and_goes_on(there: There) -> None:
    run = there.airflow.train("told", {"final.mode": "preempted", "final.plus": 70})
    assert there.airflow.ended(run, LIMIT_S) == "success", there.airflow.log(run, "final")
    assert there.airflow.tries(run, "final") == 2
    [*_, failed, started, ran] = [
        each for each in toy.events(there.project, "told") if each["stage"] == "final"
    ]
    assert "it goes on when it is tried again" in failed["cause"]
    assert (started["state"], ran["text"]) == ("started", "goes on from step 20")
    assert there.store.holds(b"112")


def test_a_container_that_is_stopped_is_tried_again(there: There) -> None:
    """SIGTERM to its first process: `podman stop`, or a node that is drained."""
    pid = there.project / "var" / "pid"
    run = there.airflow.train("stopped", {"final.mode": "hang", "final.plus": 71})
    deadline = time.monotonic() + LIMIT_S
    while not pid.exists():
        assert time.monotonic() < deadline, there.airflow.log(run, "final")
        time.sleep(0.5)
    [container] = podman.run(there.engine, "ps", "--quiet", "--filter=name=cslm-stopped").stdout.split()
    assert podman.run(there.engine, "kill", "--signal=TERM", container).returncode == 0
    assert there.airflow.ended(run, LIMIT_S) == "success", there.airflow.log(run, "final")
    assert there.airflow.tries(run, "final") == 2
    assert there.store.holds(b"113")


def test_a_stage_that_fails_by_itself_is_not_tried_again(there: There) -> None:
    run = there.airflow.train("fails", {"final.mode": "fail"})
    assert there.airflow.ended(run, LIMIT_S) == "failed"
    assert there.airflow.tries(run, "final") == 1
    assert "final: the number 13 is unlucky" in toy.events(there.project, "fails")[-1]["cause"]
    left = podman.run(there.engine, "ps", "--all", "--quiet", "--filter=name=cslm-fails")
    assert left.stdout == "", "a container is left"
