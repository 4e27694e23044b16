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
from dags.runners.kubernetes import LABELS

FOLDER = places.PROJECT / "infra" / "kubernetes"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
MANIFESTS = sorted(path for path in FOLDER.rglob("*.yaml") if path.name != "kustomization.yaml")
STAGES = graph.read_graph(places.PROJECT / "dvc.yaml")


def _documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text("utf-8")))


def _one(kind: str) -> dict[str, Any]:
    [found] = [d for path in MANIFESTS for d in _documents(path) if d["kind"] == kind]
    return found


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_manifest_is_valid(path: Path) -> None:
    for document in _documents(path):
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
    [binding] = [d for d in documents if d["kind"] == "RoleBinding"]
    accounts = {d["metadata"]["name"] for d in documents if d["kind"] == "ServiceAccount"}
    assert binding["subjects"][0]["name"] in accounts


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_quota_leaves_room_for_the_largest_stage(overlay: str) -> None:
    [quota] = _documents(FOLDER / "overlays" / overlay / "quota.yaml")
    hard = quota["spec"]["hard"]
    assert int(hard["limits.cpu"]) >= max(int(stage.meta["cpus"]) for stage in STAGES.values())
    memory = max(container.memory_bytes(str(stage.meta["memory"])) for stage in STAGES.values())
    assert container.memory_bytes(hard["limits.memory"]) >= memory


def test_policies_are_about_the_pods_of_stages() -> None:
    assert _one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == LABELS
    budget = _one("PodDisruptionBudget")["spec"]
    assert budget["selector"]["matchLabels"] == LABELS
    assert set(budget) == {"selector", "minAvailable"}, "pods without a controller know no maxUnavailable"
    quotas = [d for path in MANIFESTS for d in _documents(path) if d["kind"] == "ResourceQuota"]
    assert all(budget["minAvailable"] > int(quota["spec"]["hard"]["pods"]) for quota in quotas)
