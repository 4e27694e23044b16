"""Airflow, MLflow and the chat page in a cluster: infra/kubernetes/services as its overlays render it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from dags import graph, images, places
from dags.runners import container
from dags.runners.pods import LABELS
from infra import cluster, contained
from tests.infra import network

pytestmark = pytest.mark.skipif(
    not shutil.which("kubectl"), reason="needs kubectl: apt-get install kubernetes-client"
)

COMPOSE = yaml.safe_load((places.PROJECT / "infra" / "compose.yaml").read_text("utf-8"))["services"]
OPERATORS = (places.PROJECT / "docs" / "operators.md").read_text("utf-8")
STAGES = graph.read_graph(places.PROJECT / "dvc.yaml")
MAKERS = ("Deployment", "StatefulSet", "Job")
COMMIT = "c" * 40
REGISTRY = "registry.example.org:5000/team"
COMPONENT = "app.kubernetes.io/component"
MOUNTED = "automountServiceAccountToken"
AIRFLOW = {f"airflow-{part}" for part in ("api", "scheduler", "dag-processor", "triggerer")}
DATABASE_USERS = AIRFLOW | {"mlflow", "prepare"}
TO_API = {(f"airflow-{part}", "airflow-api", 8080) for part in ("scheduler", "dag-processor", "triggerer")}
TO_MLFLOW = {
    (source, "mlflow", 5000) for source in ("airflow-scheduler", "airflow-dag-processor", "chat", "stage")
}
FLOWS = {"all": TO_API | TO_MLFLOW}
FLOWS["trial"] = FLOWS["all"] | {(source, "postgres", 5432) for source in DATABASE_USERS}
"""Who speaks to which pod at which port; nobody else can."""
OUTSIDE = {
    "airflow-api": {53, 5432},
    "airflow-scheduler": {53, 443, 5432, 6443},
    "airflow-dag-processor": {53, 443, 5432},
    "airflow-triggerer": {53, 443, 5432, 6443},
    "mlflow": {53, 443, 5432},
    "chat": {53, 443},
    "prepare": {53, 443, 5432},
    "postgres": {53},
}
"""Ports at which something outside the namespace may be called."""
MLFLOW_SECRET = {"PGHOST", "PGUSER", "PGPASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"}
"""Keys of the Secret cslm-mlflow, all of which MLflow gets."""

Document = network.Document


@pytest.fixture(scope="module", params=sorted(FLOWS))
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def documents(overlay: str, tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    """All objects of an overlay, as `make kubernetes` writes them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in cluster.SETTINGS:
            patch.delenv(name, raising=False)
        patch.setenv("CSLM_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("CSLM_REGISTRY", REGISTRY)
        patch.setenv("AWS_ENDPOINT_URL", "https://s3.example.org")
        return list(yaml.safe_load_all(cluster._manifests(overlay, COMMIT).read_text("utf-8")))


@pytest.fixture(scope="module")
def pods(documents: list[Document]) -> dict[str, Document]:
    """Component -> its pods' template."""
    return {d["metadata"]["name"]: d["spec"]["template"] for d in documents if d["kind"] in MAKERS}


def test_every_object_is_valid_and_in_the_namespace(documents: list[Document]) -> None:
    for document in documents:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    assert {d["metadata"].get("namespace") for d in documents if d["kind"] != "Namespace"} == {"cslm"}


def test_every_manifest_is_used() -> None:
    for listing in {cluster.OVERLAYS / name for name in FLOWS} | {cluster.OVERLAYS.parent / "services"}:
        listed = yaml.safe_load((listing / "kustomization.yaml").read_text("utf-8"))
        used = {
            listing / name for name in [*listed["resources"], *(each["path"] for each in listed["patches"])]
        }
        assert set(listing.rglob("*.yaml")) - {listing / "kustomization.yaml"} <= used


def test_every_image_is_built_here_or_that_of_compose(
    documents: list[Document], pods: dict[str, Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = subprocess.run(
        [sys.executable, "-m", "infra.build_images", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert all(re.search(rf"\b{name}\b", usage) for name in cluster.IMAGES.values())
    monkeypatch.setenv("CSLM_REGISTRY", REGISTRY)
    own = {images.name(name) for name in cluster.IMAGES.values()}
    used = {each["image"] for pod in pods.values() for each in _containers(pod)}
    assert own <= used <= own | {COMPOSE["postgres"]["image"]}
    [settings] = [d for d in documents if "CSLM_REGISTRY" in d.get("data", {})]
    assert settings["data"]["CSLM_REGISTRY"] == REGISTRY, "where the images of stages are taken from"


def test_services_are_those_of_compose(pods: dict[str, Document]) -> None:
    for name in {*AIRFLOW, "mlflow", "chat"}:
        main = pods[name]["spec"]["containers"][0]
        assert main.get("command", []) + main.get("args", []) == COMPOSE[name]["command"], name
    for name in ("mlflow", "chat"):
        told = {variable["name"] for variable in pods[name]["spec"]["containers"][0]["env"]}
        assert set(COMPOSE[name]["environment"]) - told <= MLFLOW_SECRET, name
    assert " ".join(COMPOSE["prepare"]["command"]) in str(pods["prepare"]["spec"]["containers"][0]["command"])


def test_what_stages_read_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler takes nodes and hours of stages from it, and hands on where their rows are kept."""
    given = {"CSLM_NODES": "3", "CSLM_STAGE_HOURS": "24", "CSLM_GRACE_S": "900", "CSLM_ROWS": "/tmp/rows"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    made = cluster.kustomization(cluster.OVERLAYS / "all", tmp_path, COMMIT)["configMapGenerator"]
    assert {f"{name}={value}" for name, value in given.items()} <= set(made[0]["literals"])  # type: ignore[index]


def test_every_variable_is_documented(documents: list[Document], pods: dict[str, Document]) -> None:
    names = {name for d in documents if d["kind"] == "ConfigMap" for name in d["data"] if name.isupper()}
    for pod in pods.values():
        for each in _containers(pod):
            for variable in each.get("env", []):
                names |= {variable["name"], *(secret["key"] for _, secret in _references(variable))}
    assert len(names) > 30
    assert {name for name in names if f"`{name}`" not in OPERATORS} == set()


def test_no_secret_is_in_the_manifests(documents: list[Document], pods: dict[str, Document]) -> None:
    assert "Secret" not in {d["kind"] for d in documents}
    known = set(re.findall(r"create secret generic (\S+)", OPERATORS))
    for pod in pods.values():
        for each in _containers(pod):
            for variable in each.get("env", []):
                if re.search("PASSWORD|SECRET_|ACCESS_KEY|WEBHOOK|CSLM_AIRFLOW_DATABASE$", variable["name"]):
                    assert "value" not in variable, variable["name"]
                assert {reference["name"] for kind, reference in _references(variable) if kind} <= known


def test_every_pod_is_guarded_and_limited(pods: dict[str, Document]) -> None:
    """Pod Security `restricted`, which the namespace enforces, and a root that nobody can write to."""
    for name, pod in pods.items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        assert all("hostPath" not in volume for volume in spec["volumes"]), name
        assert spec["enableServiceLinks"] is False, f"{name}: MLFLOW_PORT would be tcp://..."
        assert set(spec["containers"][0]["resources"]["limits"]) == {"cpu", "memory"}, name
        for each in _containers(pod):
            rights = {"readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False}
            assert each["securityContext"] == rights | {"capabilities": {"drop": ["ALL"]}}, name
            mounts = {mount["name"] for mount in each["volumeMounts"]}
            assert mounts <= {volume["name"] for volume in spec["volumes"]} | {"data"}, name


def test_services_that_stay_are_watched(pods: dict[str, Document]) -> None:
    for name, pod in pods.items():
        main = pod["spec"]["containers"][0]
        probes = {key for key in main if key.endswith("Probe")}
        if name == "chat":  # which waits for a first model, however long
            assert probes == {"readinessProbe"}
        else:
            assert ({"startupProbe", "livenessProbe"} <= probes) is (name != "prepare"), name
        for probe in probes:
            if (asked := main[probe].get("httpGet")) is not None:
                assert asked["port"] in {port["name"] for port in main["ports"]}, name


def test_who_may_ask_the_cluster(documents: list[Document], pods: dict[str, Document]) -> None:
    accounts = {d["metadata"]["name"]: d for d in documents if d["kind"] == "ServiceAccount"}
    roles = {d["metadata"]["name"]: _rights(d) for d in documents if d["kind"] == "Role"}
    bound = {
        subject["name"]: roles[d["roleRef"]["name"]]
        for d in documents
        if d["kind"] == "RoleBinding"
        for subject in d["subjects"]
    }
    assert not {"ClusterRole", "ClusterRoleBinding"} & {d["kind"] for d in documents}
    asking = {}
    for name, pod in pods.items():
        account = accounts[pod["spec"]["serviceAccountName"]]
        if ({MOUNTED: True} | account | pod["spec"])[MOUNTED]:
            asking[name] = bound[account["metadata"]["name"]]
    assert set(asking) == {"airflow-scheduler", "airflow-triggerer"}
    # A KubernetesPodOperator's trigger reads a pod, its log and events, and removes it if its task is ended.
    assert asking["airflow-triggerer"] == {
        ("pods", "get"),
        ("pods", "delete"),
        ("pods/log", "get"),
        ("events", "list"),
        ("events", "watch"),
    }
    assert asking["airflow-triggerer"] < asking["airflow-scheduler"]
    assert {resource for resource, _ in asking["airflow-scheduler"]} == {"pods", "pods/log", "events"}


def test_policies_let_through_what_is_spoken_and_nothing_else(
    overlay: str, documents: list[Document], pods: dict[str, Document]
) -> None:
    policies = [d["spec"] for d in documents if d["kind"] == "NetworkPolicy"]
    labels = {name: pod["metadata"]["labels"] for name, pod in pods.items()} | {"stage": LABELS}
    assert all(name == known[COMPONENT] for name, known in labels.items())
    for policy in policies:
        assert any(network.selects(policy["podSelector"], known) for known in labels.values()), policy
    allowed = {
        (source, target, port)
        for source in labels
        for target in set(labels) - {source}
        for port in _ports(pods.get(target))
        if network.passes(policies, "Egress", labels[source], labels[target], port)
        and network.passes(policies, "Ingress", labels[target], labels[source], port)
    }
    assert allowed == FLOWS[overlay]
    for name in set(labels) - {"stage"}:
        assert network.outside(policies, labels[name]) == OUTSIDE[name], name


def test_names_and_ports_that_are_spoken_to_are_there(
    documents: list[Document], pods: dict[str, Document]
) -> None:
    ports = set()
    for service in [d for d in documents if d["kind"] == "Service"]:
        assert service["spec"].get("type", "ClusterIP") == "ClusterIP"
        [name] = [
            name
            for name, pod in pods.items()
            if network.selects({"matchLabels": service["spec"]["selector"]}, pod["metadata"]["labels"])
        ]
        known = {port["name"]: port["containerPort"] for port in pods[name]["spec"]["containers"][0]["ports"]}
        for port in service["spec"]["ports"]:
            assert known[port["targetPort"]] == port["port"]
            ports.add((service["metadata"]["name"], port["port"]))
    assert (contained.API, 8080) in ports
    for pod in pods.values():
        for each in _containers(pod):
            plain = {v["name"]: v["value"] for v in each.get("env", []) if "value" in v}
            if "MLFLOW_TRACKING_URI" in plain:
                assert ("mlflow", 5000) in ports
                assert plain["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
            if "PGHOST" in plain:
                assert (plain["PGHOST"], 5432) in ports


def test_airflow_and_its_stages_see_the_same_volume(
    documents: list[Document], pods: dict[str, Document]
) -> None:
    claims = {d["metadata"]["name"] for d in documents if d["kind"] == "PersistentVolumeClaim"}
    accounts = {d["metadata"]["name"] for d in documents if d["kind"] == "ServiceAccount"}
    for name in {*AIRFLOW, "prepare"}:
        spec = pods[name]["spec"]
        main = spec["containers"][0]
        told = {v["name"]: v.get("value") for v in main["env"]}
        [volume] = [v for v in spec["volumes"] if "persistentVolumeClaim" in v]
        claim = volume["persistentVolumeClaim"]["claimName"]
        assert claim == told["CSLM_KUBERNETES_CLAIM"]
        assert claim in claims
        assert {"name": volume["name"], "mountPath": told["CSLM_KUBERNETES_MOUNT"]} in main["volumeMounts"]
        for path in (told["CSLM_HOME"], told["PYTHONPATH"]):
            assert Path(str(path)).parent == Path(str(told["CSLM_KUBERNETES_MOUNT"]))
        assert told["CSLM_KUBERNETES_SERVICE_ACCOUNT"] in accounts
    assert {name for name, pod in pods.items() if "persistentVolumeClaim" in str(pod)} == {*AIRFLOW, "prepare"}


def test_the_quota_has_room_for_all_services_and_the_largest_stage(
    documents: list[Document], pods: dict[str, Document]
) -> None:
    [quota] = [d["spec"]["hard"] for d in documents if d["kind"] == "ResourceQuota"]
    count = {d["metadata"]["name"]: d["spec"].get("replicas", 1) for d in documents if d["kind"] in MAKERS}
    need: Counter[str] = Counter()
    for name, pod in pods.items():
        limits = pod["spec"]["containers"][0]["resources"]["limits"]
        need["cpu"] += count[name] * int(limits["cpu"])
        need["memory"] += count[name] * container.memory_bytes(limits["memory"])
        need["pods"] += count[name]
    cpus = max(int(stage.meta["cpus"]) for stage in STAGES.values())
    memory = max(container.memory_bytes(str(stage.meta["memory"])) for stage in STAGES.values())
    assert int(quota["pods"]) > need["pods"]
    assert int(quota["limits.cpu"]) >= need["cpu"] + cpus
    assert container.memory_bytes(quota["limits.memory"]) >= need["memory"] + memory


def test_a_node_can_be_emptied(documents: list[Document], pods: dict[str, Document]) -> None:
    """A budget of services lets one pod go, or it would block a drain where there is one replica."""
    for budget in [d["spec"] for d in documents if d["kind"] == "PodDisruptionBudget"]:
        selected = [
            n for n, pod in pods.items() if network.selects(budget["selector"], pod["metadata"]["labels"])
        ]
        assert network.selects(budget["selector"], LABELS) or (
            len(selected) == 1 and budget["maxUnavailable"] == 1
        )


def _containers(pod: Document) -> Iterator[Document]:
    yield from pod["spec"].get("initContainers", [])
    yield from pod["spec"]["containers"]


def _references(variable: Document) -> list[tuple[bool, Document]]:
    """What a variable is taken from, and whether that is a Secret."""
    source = variable.get("valueFrom", {})
    keys = {"secretKeyRef": True, "configMapKeyRef": False}
    return [(secret, source[key]) for key, secret in keys.items() if key in source]


def _rights(role: Document) -> set[tuple[str, str]]:
    return {(r, verb) for rule in role["rules"] for r in rule["resources"] for verb in rule["verbs"]}


def _ports(pod: Document | None) -> set[int]:
    return {
        port["containerPort"]
        for each in _containers(pod or {"spec": {"containers": []}})
        for port in each.get("ports", [])
    }
