"""Stages as pods of a cluster, through Airflow's KubernetesPodOperator.

Airflow's workers and the pods share one volume (CSLM_KUBERNETES_CLAIM, at CSLM_KUBERNETES_MOUNT in both), which
holds the checkout and CSLM_HOME: a pod works in the same workspace at the same path as a process would. Its
cores, memory, GPUs, node selector and tolerations are those of dvc.yaml's `meta`. While it works the task is
deferred and takes no worker; its lines appear in the task's log as Airflow's triggerer reads them.

There is one pod of a stage, under a name of its own: who tries again finds the pod of before at work. Passwords
and keys stand in no pod: each is a reference to the Secret CSLM_KUBERNETES_SECRET.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.utils.pod_manager import (
    PodPhase,
    detect_pod_terminate_early_issues,
)
from airflow.sdk.exceptions import AirflowException
from kubernetes.client import ApiException
from kubernetes.client import models as k8s
from kubernetes.config import ConfigException
from urllib3.exceptions import HTTPError

from dags import failures, graph, images, places, run, runners
from dags.runners import container

if TYPE_CHECKING:
    from airflow.sdk import Context

STAGES = graph.read_graph(places.PROJECT / "dvc.yaml")
CLAIM, MOUNT, SECRET = "CSLM_KUBERNETES_CLAIM", "CSLM_KUBERNETES_MOUNT", "CSLM_KUBERNETES_SECRET"
NAMESPACE, ACCOUNT = "CSLM_KUBERNETES_NAMESPACE", "CSLM_KUBERNETES_SERVICE_ACCOUNT"
DEFAULT_MOUNT = "/cslm"
OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
LABELS = {"app.kubernetes.io/part-of": "cslm", "app.kubernetes.io/component": "stage"}
"""What infra/kubernetes knows the pods of stages by."""
BASE = "base"
LONGEST_NAME = 63
SCHEDULED_S = 24 * 3600
"""How long a pod may wait for a place: a busy cluster is no failure."""
STARTED_S = 1800
"""How long an image of some gigabytes may take to come."""
LOGS_EVERY_S = 15
GRACE_S = 30
SHARED_MEMORY = "1Gi"
OUT_OF_MEMORY = "OOMKilled"
KILLED, ENDED = 137, 143
"""Exit codes of SIGKILL, and of SIGTERM: what a pod gets whose place is taken."""


def task_of(stage: graph.Stage, facts: Any, items: Any = None) -> Any:
    """A task that brings the stage, or one of its items, to its end in a pod."""
    arguments = {**runners.arguments(stage), "stage_name": stage.name}
    if items is None:
        return StagePod(**arguments, facts=facts)
    return StagePod.partial(**arguments, facts=facts).expand(item=items)


class StagePod(KubernetesPodOperator):
    """A pod that brings one stage to its end."""

    template_fields = ("facts", "item")

    def __init__(self, *, stage_name: str, facts: Any, item: str | None = None, **arguments: Any) -> None:
        meta, gpus = STAGES[stage_name].meta, runners.gpus(STAGES[stage_name])
        account = os.environ.get(ACCOUNT)
        super().__init__(
            namespace=_namespace(),
            image=images.name(str(meta["image"])),
            cmds=list(images.STAGE_COMMAND),
            random_name_suffix=False,
            labels=dict(LABELS),
            container_resources=resources(meta, gpus),
            node_selector=dict(meta.get("node_selector") or {}) if gpus else {},
            tolerations=list(meta.get("tolerations") or []) if gpus else [],
            service_account_name=account or None,
            automount_service_account_token=False,
            security_context=_user(),
            container_security_context=_no_rights(),
            deferrable=True,
            durable=True,
            get_logs=True,
            logging_interval=LOGS_EVERY_S,
            schedule_timeout_seconds=SCHEDULED_S,
            startup_timeout_seconds=STARTED_S,
            termination_grace_period=GRACE_S,
            active_deadline_seconds=int(runners.longest_stage().total_seconds()),
            log_events_on_failure=True,
            log_pod_spec_on_failure=False,
            on_finish_action="delete_pod",
            **arguments,
        )
        self.stage_name, self.facts, self.item = stage_name, facts, item

    def execute(self, context: Context) -> None:
        """Start the pod, or find it at work, and wait for it deferred."""
        stage = self._stage(context)
        with failures.readable():
            work = run.work_of(self.facts, stage, self.item)
            with run.told(self.facts, work.address, started=False):
                self._describe(work)
                begun = self._at_work(context)
            if not begun:
                run.start_stage(self.facts, stage, self.item)
            with run.told(self.facts, work.address, started=False), _reachable():
                super().execute(context)

    def trigger_reentry(self, context: Context, event: dict[str, Any]) -> str:
        """Gather what the pod has made; `cached` or `ran`."""
        stage = self._stage(context)

        def doing(line: run.Log) -> int:
            return self._ended(context, event, line)

        with failures.readable():
            # Airflow has logged the pod's lines already.
            return run.end_stage(self.facts, stage, self.item, lambda text: None, doing)

    def _stage(self, context: Context) -> graph.Stage:
        if self.item is not None:
            context["item"] = self.item  # type: ignore[typeddict-unknown-key]
        return STAGES[self.stage_name]

    def _describe(self, work: run.Work) -> None:
        """What only a run knows: the pod's name, arguments, variables and volumes.

        Raises:
            RunFailed: something that the pod needs does not lie on the volume.
        """
        self.name = pod_name(str(self.facts["run"]), work.address)
        self.arguments = work.arguments
        self.env_vars = _variables(work.environment, STAGES[self.stage_name])
        self.volumes, self.volume_mounts = _volumes()

    def _at_work(self, context: Context) -> bool:
        """Whether a pod of this task, by a worker that is gone, works in its workspace."""
        with _reachable():
            pod = self.find_pod(str(self.namespace), context)
        return pod is not None and pod.status.phase not in (PodPhase.SUCCEEDED, PodPhase.FAILED)

    def _ended(self, context: Context, event: dict[str, Any], line: run.Log) -> int:
        """Exit code of the pod, all of whose lines are told.

        Raises:
            RunFailed: the pod could not begin.
            MachineAway: the pod or its node was lost.
        """
        lines, failure = self._lines(event), None
        try:
            super().trigger_reentry(context, event)  # logs the last lines, removes the pod, or defers again
        except AirflowException as error:
            failure = error
        for text in lines:
            line(text)
        state = _terminated(self.pod)
        if state is not None and not (failure and _lost(self.pod, state)):
            if state.reason == OUT_OF_MEMORY or state.exit_code == KILLED:
                line(container.killed(STAGES[self.stage_name]))
            return int(state.exit_code)
        if failure is None:  # and the pod is gone already
            return 0
        if event["status"] == "timeout" or (self.pod and detect_pod_terminate_early_issues(self.pod)):
            raise run.RunFailed(
                f"the pod {event['name']} did not begin to work: {event['message']}\n"
                f"Its image is {self.image}: `make images` builds it, CSLM_REGISTRY names where it is pushed to"
            )
        raise run.MachineAway(f"the pod {event['name']} was lost: {failure}") from failure

    def _lines(self, event: dict[str, Any]) -> list[str]:
        """All that the pod has printed; nothing if its node is gone."""
        try:
            log = self.client.read_namespaced_pod_log(
                event["name"], event["namespace"], container=BASE, _preload_content=False
            )
            return [str(text) for text in log.data.decode("utf-8", "replace").splitlines()]
        except ApiException as error:
            self.log.warning("the log of pod %s cannot be read: %s", event["name"], error.reason)
            return []


def pod_name(run_name: str, address: str) -> str:
    """A name that Kubernetes takes (RFC 1123), and no other stage of any run has."""
    digest = hashlib.sha256(f"{run_name}\0{address}".encode()).hexdigest()[:8]
    readable = re.sub(r"[^a-z0-9]+", "-", f"cslm-{run_name}-{address}".lower())
    return f"{readable[: LONGEST_NAME - len(digest) - 1].strip('-')}-{digest}"


def resources(meta: dict[str, Any], gpus: int) -> k8s.V1ResourceRequirements:
    """Requests and limits of dvc.yaml's `meta`: what a stage is promised is all that it gets."""
    container.memory_bytes(str(meta["memory"]))  # a wrong notation is refused here, not by the cluster
    amounts = {"cpu": str(meta.get("cpus", 1)), "memory": str(meta["memory"])}
    if gpus:
        amounts["nvidia.com/gpu"] = str(gpus)
    return k8s.V1ResourceRequirements(requests=amounts, limits=dict(amounts))


def _user() -> k8s.V1PodSecurityContext:
    """The user that runs Airflow, so that the files of both belong to it."""
    return k8s.V1PodSecurityContext(
        run_as_user=os.getuid(),
        run_as_group=os.getgid(),
        run_as_non_root=os.getuid() != 0,
        seccomp_profile=k8s.V1SeccompProfile(type="RuntimeDefault"),
    )


def _no_rights() -> k8s.V1SecurityContext:
    return k8s.V1SecurityContext(
        read_only_root_filesystem=True,
        allow_privilege_escalation=False,
        capabilities=k8s.V1Capabilities(drop=["ALL"]),
    )


def _variables(given: dict[str, str], stage: graph.Stage) -> list[k8s.V1EnvVar]:
    """Plain variables, and references to the Secret instead of what must not be read in a pod's description."""
    told = container.environment(given, int(stage.meta.get("cpus", 1)), stage.name)
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


def _volumes() -> tuple[list[k8s.V1Volume], list[k8s.V1VolumeMount]]:
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
    volumes = [
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
    return volumes, mounts


@contextmanager
def _reachable() -> Iterator[None]:
    """Say it in one sentence if the cluster cannot be asked.

    Raises:
        MachineAway: it does not answer, or refuses.
    """
    try:
        yield
    except (ApiException, HTTPError, ConfigException) as error:
        why = error.reason if isinstance(error, ApiException) else error
        raise run.MachineAway(
            f"the cluster does not do its work: {why}. Check KUBECONFIG or the service account, and its rights "
            "in the namespace (infra/kubernetes), then run this again"
        ) from error


def _namespace() -> str:
    """CSLM_KUBERNETES_NAMESPACE, else that of Airflow's own pod."""
    own = OWN_NAMESPACE.read_text("utf-8") if OWN_NAMESPACE.exists() else "default"
    return os.environ.get(NAMESPACE) or own


def _mount() -> Path:
    return Path(os.environ.get(MOUNT) or DEFAULT_MOUNT)


def _on_volume(path: Path) -> bool:
    return path.is_relative_to(_mount())


def _terminated(pod: k8s.V1Pod | None) -> k8s.V1ContainerStateTerminated | None:
    """How the stage's container ended; None if it has not, or nobody knows."""
    statuses = (pod.status.container_statuses if pod and pod.status else None) or []
    return next((status.state.terminated for status in statuses if status.name == BASE), None)


def _lost(pod: k8s.V1Pod, state: k8s.V1ContainerStateTerminated) -> bool:
    """Whether the cluster took the pod's place, and not the stage ended by itself."""
    return bool(state.exit_code == ENDED or pod.metadata.deletion_timestamp or pod.status.reason)
