"""The manifests of infra/kubernetes: valid for Kubernetes, whole, and about the pods that the runner makes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from dags import graph, places
from dags.runners import container
from dags.runners.pods import LABELS
from tests import trainer_schema

FOLDER = places.PROJECT / "infra" / "kubernetes"
SERVICES = {"services", "all", "trial"}
"""Folders of Airflow, MLflow and the chat page in the cluster, which test_cluster.py looks at."""
OVERLAYS = sorted({path.name for path in (FOLDER / "overlays").iterdir()} - SERVICES)
MANIFESTS = sorted(
    path
    for path in FOLDER.rglob("*.yaml")
    if path.name != "kustomization.yaml" and not SERVICES & set(path.relative_to(FOLDER).parts)
)
STAGES = graph.read_graph(places.PROJECT / "dvc.yaml")


def _documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text("utf-8")))


def _all(kind: str) -> list[dict[str, Any]]:
    return [d for path in MANIFESTS for d in _documents(path) if d["kind"] == kind]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_manifest_is_valid(path: Path) -> None:
    for document in _documents(path):
        if document["kind"] in trainer_schema.KINDS:
            trainer_schema.validate(document)
        else:
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_every_manifest_is_used() -> None:
    used = set()
    for listing in FOLDER.rglob("kustomization.yaml"):
        for name in yaml.safe_load(listing.read_text("utf-8"))["resources"]:
            target = (listing.parent / name).resolve()
            assert target.exists(), f"{listing}: {name} is not there"
            used.add(target)
    assert {path.resolve() for path in MANIFESTS} <= used


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl: apt-get install kubernetes-client")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_puts_all_into_its_namespace(overlay: str) -> None:
    command = ["kubectl", "kustomize", str(FOLDER / "overlays" / overlay)]
    built = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    documents = list(yaml.safe_load_all(built))
    assert {d["metadata"].get("namespace") for d in documents if d["kind"] != "Namespace"} == {"cslm"}
    assert {"ResourceQuota", "Role", "NetworkPolicy", "PodDisruptionBudget"} <= {d["kind"] for d in documents}
    names = {(d["kind"], d["metadata"]["name"]) for d in documents}
    for binding in [d for d in documents if d["kind"] == "RoleBinding"]:
        assert {("ServiceAccount", subject["name"]) for subject in binding["subjects"]} <= names
        assert ("Role", binding["roleRef"]["name"]) in names


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_quota_leaves_room_for_the_largest_stage(overlay: str) -> None:
    [quota] = _documents(FOLDER / "overlays" / overlay / "quota.yaml")
    hard = quota["spec"]["hard"]
    assert int(hard["limits.cpu"]) >= max(int(stage.meta["cpus"]) for stage in STAGES.values())
    memory = max(container.memory_bytes(str(stage.meta["memory"])) for stage in STAGES.values())
    assert container.memory_bytes(hard["limits.memory"]) >= memory


def test_policies_are_about_the_pods_of_stages() -> None:
    for policy in _all("NetworkPolicy"):
        assert policy["spec"]["podSelector"]["matchLabels"] == LABELS
    [runtime] = _all("TrainingRuntime")
    [nodes] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert nodes["template"]["spec"]["template"]["metadata"]["labels"] == LABELS
    [budget] = [each["spec"] for each in _all("PodDisruptionBudget")]
    assert budget["selector"]["matchLabels"] == LABELS
    assert set(budget) == {"selector", "minAvailable"}, "pods without a controller know no maxUnavailable"
    for overlay in OVERLAYS:
        [quota] = _documents(FOLDER / "overlays" / overlay / "quota.yaml")
        assert budget["minAvailable"] > int(quota["spec"]["hard"]["pods"])


def test_the_quota_of_several_nodes_has_room_for_all_of_them() -> None:
    [quota] = _documents(FOLDER / "overlays" / "nodes" / "quota.yaml")
    hard = quota["spec"]["hard"]
    gpus = max(int(stage.meta.get("gpus", 0)) * int(stage.meta.get("nodes", 1)) for stage in STAGES.values())
    assert int(hard["requests.nvidia.com/gpu"]) >= gpus
