"""What a pod of a stage has, whoever makes it: a name, resources, variables, volumes, rights."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kubernetes.client import ApiException
from kubernetes.client import models as k8s
from kubernetes.config import ConfigException
from urllib3.exceptions import HTTPError

from dags import graph, places, run, runners, store_connection
from dags.runners import container

CLAIM, MOUNT, SECRET = "CSLM_KUBERNETES_CLAIM", "CSLM_KUBERNETES_MOUNT", "CSLM_KUBERNETES_SECRET"
NAMESPACE, ACCOUNT = "CSLM_KUBERNETES_NAMESPACE", "CSLM_KUBERNETES_SERVICE_ACCOUNT"
DEFAULT_MOUNT = "/cslm"
STORES = ("CSLM_DVC_REMOTE", "CSLM_CHECKPOINTS", "CSLM_ARTIFACTS", "AWS_ENDPOINT_URL")
"""Variables that may name an object store, or a place in one."""
KEY = "AWS_ACCESS_KEY_ID"
OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
LABELS = {"app.kubernetes.io/part-of": "cslm", "app.kubernetes.io/component": "stage"}
"""What infra/kubernetes knows the pods of stages by."""
LONGEST_NAME = 63
SCHEDULED_S = 24 * 3600
"""How long a pod may wait for a place: a busy cluster is no failure."""
LOGS_EVERY_S = 15
SHARED_MEMORY = "1Gi"
OUT_OF_MEMORY = "OOMKilled"


def name(run_name: str, address: str, longest: int = LONGEST_NAME) -> str:
    """A name that Kubernetes takes (RFC 1035), and no other stage of any run has."""
    digest = hashlib.sha256(f"{run_name}\0{address}".encode()).hexdigest()[:8]
    readable = re.sub(r"[^a-z0-9]+", "-", f"cslm-{run_name}-{address}".lower())
    return f"{readable[: longest - len(digest) - 1].strip('-')}-{digest}"


def resources(meta: dict[str, Any], gpus: int) -> k8s.V1ResourceRequirements:
    """Requests and limits of dvc.yaml's `meta`: what a stage is promised is all that it gets."""
    container.memory_bytes(str(meta["memory"]))  # a wrong notation is refused here, not by the cluster
    amounts = {"cpu": str(meta.get("cpus", 1)), "memory": str(meta["memory"])}
    if gpus:
        amounts["nvidia.com/gpu"] = str(gpus)
    return k8s.V1ResourceRequirements(requests=amounts, limits=dict(amounts))


def user() -> k8s.V1PodSecurityContext:
    """The user that runs Airflow, so that the files of both belong to it."""
    return k8s.V1PodSecurityContext(
        run_as_user=os.getuid(),
        run_as_group=os.getgid(),
        run_as_non_root=os.getuid() != 0,
        seccomp_profile=k8s.V1SeccompProfile(type="RuntimeDefault"),
    )


def no_rights() -> k8s.V1SecurityContext:
    return k8s.V1SecurityContext(
        read_only_root_filesystem=True,
        allow_privilege_escalation=False,
        capabilities=k8s.V1Capabilities(drop=["ALL"]),
    )


def variables(given: dict[str, str], stage: graph.Stage) -> list[k8s.V1EnvVar]:
    """Plain variables, and references to the Secret instead of what must not be read in a pod's description.

    Raises:
        RunFailed: a file that a variable names lies not on the volume, or no Secret has the store's keys.
    """
    cpus = int(stage.meta.get("cpus", 1))
    told = container.environment(given, cpus, stage.name, runners.gpus(stage))
    for name in container.FILES:
        if told.get(name) and not _on_volume(Path(told[name])):
            raise run.RunFailed(f"{name}={told[name]}: pods see only what lies under {_mount()} ({MOUNT})")
    plain = [
        k8s.V1EnvVar(name=name, value=value)
        for name, value in sorted(told.items())
        if name not in (*container.SECRETS, container.JUDGE_KEY)
    ]
    secret = os.environ.get(SECRET)
    if not secret:
        if told.get(KEY) and any(os.environ.get(name, "").startswith(("s3://", "http")) for name in STORES):
            raise run.RunFailed(
                f"{SECRET} is not set: pods take the object store's keys from a Secret, never from Airflow's "
                f"connection {store_connection.CONNECTION} or the environment, which anybody could read in a "
                f"pod's description. Make it (`kubectl -n {namespace()} create secret generic cslm-store "
                f"--from-literal={KEY}=... --from-literal=AWS_SECRET_ACCESS_KEY=...`) and name it: "
                f"{SECRET}=cslm-store"
            )
        return plain
    return plain + [
        k8s.V1EnvVar(
            name=name,
            value_from=k8s.V1EnvVarSource(
                secret_key_ref=k8s.V1SecretKeySelector(name=secret, key=name, optional=True)
            ),
        )
        for name in container.secrets(stage.name)
    ]


def volumes() -> tuple[list[k8s.V1Volume], list[k8s.V1VolumeMount]]:
    """The volume that Airflow and pods share, without Airflow's keys; room for temporary files."""
    claim, home = os.environ.get(CLAIM), places.home()
    if not claim:
        raise run.RunFailed(f"{CLAIM} is not set: the claim of the volume that Airflow and its pods share")
    for name, path in {"CSLM_HOME": home, "the checkout": places.PROJECT}.items():
        if not _on_volume(path):
            raise run.RunFailed(
                f"{name} is {path}, which pods cannot see: it must lie under {_mount()} ({MOUNT}), where the "
                f"claim {claim} is mounted"
            )
    held = [
        k8s.V1Volume(
            name="cslm",
            persistent_volume_claim=k8s.V1PersistentVolumeClaimVolumeSource(claim_name=claim),
        ),
        k8s.V1Volume(name="temporary", empty_dir=k8s.V1EmptyDirVolumeSource()),
        k8s.V1Volume(name="nothing", empty_dir=k8s.V1EmptyDirVolumeSource()),
        k8s.V1Volume(
            name="shared-memory",
            empty_dir=k8s.V1EmptyDirVolumeSource(medium="Memory", size_limit=SHARED_MEMORY),
        ),
    ]
    mounts = [
        k8s.V1VolumeMount(name="cslm", mount_path=str(_mount())),
        k8s.V1VolumeMount(name="temporary", mount_path="/tmp"),
        k8s.V1VolumeMount(name="nothing", mount_path=str(home / "airflow"), read_only=True),
        k8s.V1VolumeMount(name="shared-memory", mount_path="/dev/shm"),
    ]
    return held, mounts


@contextmanager
def reachable() -> Iterator[None]:
    """Say it in one sentence if the cluster cannot be asked.

    Raises:
        MachineAway: it does not answer, or refuses.
    """
    try:
        yield
    except (ApiException, HTTPError, ConfigException) as error:
        why = said(error) if isinstance(error, ApiException) else error
        raise run.MachineAway(
            f"the cluster does not do its work: {why}. Check KUBECONFIG or the service account, and its rights "
            "in the namespace (infra/kubernetes), then run this again"
        ) from error


def said(error: ApiException) -> str:
    """Why the cluster refused, in its own words."""
    with suppress(ValueError, TypeError, AttributeError):
        return str(json.loads(error.body).get("message") or error.reason)
    return str(error.reason)


def account() -> str | None:
    """Service account of the pods of stages (CSLM_KUBERNETES_SERVICE_ACCOUNT)."""
    return os.environ.get(ACCOUNT) or None


def namespace() -> str:
    """CSLM_KUBERNETES_NAMESPACE, else that of Airflow's own pod."""
    own = OWN_NAMESPACE.read_text("utf-8") if OWN_NAMESPACE.exists() else "default"
    return os.environ.get(NAMESPACE) or own


def _mount() -> Path:
    return Path(os.environ.get(MOUNT) or DEFAULT_MOUNT)


def _on_volume(path: Path) -> bool:
    return path.is_relative_to(_mount())
