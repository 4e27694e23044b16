"""Every stage as a pod: described by Airflow's KubernetesPodOperator, run by tests/slow/cluster.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.end_to_end.checkout import ROOT, demo, failure, outputs
from tests.slow import cluster, podman

pytestmark = [pytest.mark.timeout(1800), podman.NEEDED]


@pytest.fixture(scope="module")
def kubernetes(
    clone: Path, engine: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[cluster.Cluster, dict[str, str]]]:
    """A cluster whose volume holds the clone, and the variables that lead a run to it."""
    secrets = {"cslm": {"AWS_SECRET_ACCESS_KEY": "from-the-secret"}}
    there = cluster.Cluster(engine, {"cslm": clone}, secrets)
    with cluster.serve(there, tmp_path_factory.mktemp("kubernetes")) as variables:
        yield (
            there,
            variables
            | engine
            | {
                "CSLM_RUNNER": "kubernetes",
                "CSLM_KUBERNETES_CLAIM": "cslm",
                "CSLM_KUBERNETES_MOUNT": str(clone),
                "CSLM_KUBERNETES_SECRET": "cslm",
                "AWS_SECRET_ACCESS_KEY": "of-the-worker",
                "AWS_CA_BUNDLE": "",
            },
        )


def test_every_stage_works_in_a_pod_and_gives_the_same(
    clone: Path,
    first: str,
    images: dict[str, str],
    kubernetes: tuple[cluster.Cluster, dict[str, str]],
) -> None:
    there, variables = kubernetes
    output, _ = demo(clone, RUN="pods", FORCE="validate tokenize", **variables)
    assert "registered: version 1 (unchanged" in output, output
    assert outputs(clone / "var", "pods") == outputs(clone / "var", "first")
    assert {pod["spec"]["containers"][0]["image"] for pod in there.created} == set(images.values())
    assert "from-the-secret" not in str(there.created)
    assert "of-the-worker" not in str(there.created)
    assert not there.pods, "a pod is left"
    [log] = (clone / "var" / "logs" / "pods").glob("validate*.log")
    assert "dialogues: 144 delivered, 0 refused" in log.read_text(), "what the pod has printed"


def test_a_missing_image_ends_the_run_with_what_to_do(
    clone: Path, kubernetes: tuple[cluster.Cluster, dict[str, str]]
) -> None:
    there, variables = kubernetes
    said = failure(clone, **variables | {"CSLM_REGISTRY": "localhost/nowhere"})
    assert "did not begin to work" in said
    assert "`make images` builds it" in said
    assert not there.pods, "a pod is left"


def test_a_stage_that_fails_in_a_pod_says_why(
    clone: Path, images: dict[str, str], kubernetes: tuple[cluster.Cluster, dict[str, str]]
) -> None:
    there, variables = kubernetes
    said = failure(clone, **variables | {"SET": "validate.max_duration_s=0.4"})
    assert "stage validate failed" in said
    assert "cause:" in said
    assert not there.pods, "a pod is left"


def test_airflow_has_the_rights_that_it_uses_and_no_more(
    kubernetes: tuple[cluster.Cluster, dict[str, str]],
) -> None:
    """By what the runs above have asked for; events are watched only while a pod waits for its place."""
    documents = yaml.safe_load_all((ROOT / "infra" / "kubernetes" / "base" / "accounts.yaml").read_text())
    [role] = [document for document in documents if document["kind"] == "Role"]
    granted = {(r, verb) for rule in role["rules"] for r in rule["resources"] for verb in rule["verbs"]}
    assert granted - kubernetes[0].asked <= {("events", "watch")}
    assert kubernetes[0].asked <= granted
