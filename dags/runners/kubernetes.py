"""Stages as pods of a cluster, through Airflow's KubernetesPodOperator.

Airflow's workers and the pods share one volume (CSLM_KUBERNETES_CLAIM, at CSLM_KUBERNETES_MOUNT in both), which
holds the checkout and CSLM_HOME: a pod works in the same workspace at the same path as a process would. Its
cores, memory, GPUs, node selector and tolerations are those of dvc.yaml's `meta`. While it works the task is
deferred and takes no worker; its lines appear in the task's log as Airflow's triggerer reads them.

There is one pod of a stage, under a name of its own: who tries again finds the pod of before at work. Passwords
and keys stand in no pod: each is a reference to the Secret CSLM_KUBERNETES_SECRET.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.utils.pod_manager import (
    PodPhase,
    detect_pod_terminate_early_issues,
)
from airflow.sdk.exceptions import AirflowException
from kubernetes.client import ApiException
from kubernetes.client import models as k8s

from dags import dvc_stage, failures, graph, images, places, run, runners
from dags.runners import container, pods
from dags.runners.pod_trigger import StagePodTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.triggers.base import BaseTrigger

STAGES = graph.read_graph(places.PROJECT / "dvc.yaml")
BASE = "base"
STARTED_S = 1800
"""How long an image of some gigabytes may take to come."""


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
        super().__init__(
            namespace=pods.namespace(),
            image=images.name(str(meta["image"])),
            cmds=list(images.STAGE_COMMAND),
            random_name_suffix=False,
            labels=dict(pods.LABELS),
            container_resources=pods.resources(meta, gpus),
            node_selector=dict(meta.get("node_selector") or {}) if gpus else {},
            tolerations=list(meta.get("tolerations") or []) if gpus else [],
            service_account_name=pods.account(),
            automount_service_account_token=False,
            security_context=pods.user(),
            container_security_context=pods.no_rights(),
            deferrable=True,
            durable=True,
            get_logs=True,
            logging_interval=pods.LOGS_EVERY_S,
            schedule_timeout_seconds=pods.SCHEDULED_S,
            startup_timeout_seconds=STARTED_S,
            termination_grace_period=dvc_stage.grace_s(),
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
            with run.reported(self.facts, work.address):
                self._describe(work)
                begun = self._at_work(context)
            if not begun:
                run.start_stage(self.facts, stage, self.item)
            with run.reported(self.facts, work.address), pods.reachable():
                super().execute(context)

    def defer(self, *, trigger: BaseTrigger, **how: Any) -> NoReturn:
        """Wait for the pod by a trigger of our own."""
        super().defer(trigger=StagePodTrigger(**trigger.serialize()[1]), **how)

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
        self.name = pods.name(str(self.facts["run"]), work.address)
        self.arguments = work.arguments
        self.env_vars = pods.variables(work.environment, STAGES[self.stage_name])
        self.volumes, self.volume_mounts = pods.volumes()

    def _at_work(self, context: Context) -> bool:
        """Whether a pod of this task, by a worker that is gone, works in its workspace."""
        with pods.reachable():
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
            if state.reason == pods.OUT_OF_MEMORY or state.exit_code == dvc_stage.KILLED:
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


def _terminated(pod: k8s.V1Pod | None) -> k8s.V1ContainerStateTerminated | None:
    """How the stage's container ended; None if it has not, or nobody knows."""
    statuses = (pod.status.container_statuses if pod and pod.status else None) or []
    return next((status.state.terminated for status in statuses if status.name == BASE), None)


def _lost(pod: k8s.V1Pod, state: k8s.V1ContainerStateTerminated) -> bool:
    """Whether the cluster took the pod's place, and not the stage ended by itself."""
    return bool(state.exit_code == run.ENDED or pod.metadata.deletion_timestamp or pod.status.reason)
