"""Airflow's triggerer watches a TrainJob: what node 0 prints, what keeps the nodes waiting, and how it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any

from airflow.providers.cncf.kubernetes.hooks.kubernetes import AsyncKubernetesHook
from airflow.providers.cncf.kubernetes.utils.pod_manager import detect_pod_terminate_early_issues
from airflow.triggers.base import BaseTrigger, TriggerEvent
from kubernetes_asyncio.client import ApiException, CoreV1Api, CustomObjectsApi

from dags.runners import pods

KIND = {"group": "trainer.kubeflow.org", "version": "v1alpha1", "plural": "trainjobs"}
NODE = "node"
"""Name of the job and of the container in the runtime (infra/kubernetes); Trainer asks for it."""
JOBSET = "jobset.sigs.k8s.io/jobset-name"
INDEX = "batch.kubernetes.io/job-completion-index"
LOOKS_MISSED = 40
"""So many times in a row the cluster may not answer: ten minutes."""


class TrainJobTrigger(BaseTrigger):
    """Fires when a TrainJob has ended, is gone, or has not begun to work in time.

    The event has `status` (complete, failed, gone, timeout or away), `message`, and `lost`: what the cluster
    took from the job meanwhile, if anything.

    Args:
        deadline: time (seconds since 1970) at which node 0 must work.
    """

    def __init__(self, name: str, namespace: str, deadline: float) -> None:
        super().__init__()
        self.name, self.namespace, self.deadline = name, namespace, deadline
        self._waits = self._lost = self._printed = ""
        self._read_at: float | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """How Airflow makes it again elsewhere."""
        given = {"name": self.name, "namespace": self.namespace, "deadline": self.deadline}
        return f"{type(self).__module__}.{type(self).__qualname__}", given

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until there is something to say."""
        missed = 0
        while True:
            await asyncio.sleep(pods.LOGS_EVERY_S)  # first too: see pod_trigger.SETTLED
            try:
                event = await self._look()
                missed = 0
            except (TimeoutError, ApiException, OSError) as error:  # aiohttp's are OSErrors
                missed += 1
                self.log.warning("TrainJob %s cannot be looked at: %s", self.name, error)
                event = {"status": "away", "message": str(error)} if missed > LOOKS_MISSED else None
            if event is not None:
                yield TriggerEvent(event | {"lost": self._lost})
                return

    async def on_kill(self) -> None:
        """The task was cleared or marked by somebody: end its TrainJob."""
        async with AsyncKubernetesHook().get_conn() as connection:
            with suppress(ApiException):
                await CustomObjectsApi(connection).delete_namespaced_custom_object(
                    **KIND, namespace=self.namespace, name=self.name, propagation_policy="Foreground"
                )

    async def _look(self) -> dict[str, str] | None:
        hook = AsyncKubernetesHook()
        async with hook.get_conn() as connection:
            try:
                job = await CustomObjectsApi(connection).get_namespaced_custom_object(
                    **KIND, namespace=self.namespace, name=self.name
                )
            except ApiException as error:
                if error.status != 404:
                    raise
                return {"status": "gone", "message": "somebody has removed it"}
            core, ended = CoreV1Api(connection), end(job)
            found = (await core.list_namespaced_pod(self.namespace, label_selector=selector(self.name))).items
            self._lost = self._lost or next(filter(None, map(taken, found)), "")
            begun = [number(pod) for pod in found if pod.status.phase != "Pending"]
            if ended is None and len(begun) < job["spec"]["trainer"]["numNodes"]:
                self._tell(await self._why(core, found))
        if 0 in begun:
            await self._pass_on(hook, node(found, 0).metadata.name)
        if ended is not None:
            return {"status": ended["type"].lower(), "message": ended.get("message", "")}
        fault = next(filter(None, map(detect_pod_terminate_early_issues, found)), None)
        if fault is None and (0 in begun or time.time() < self.deadline):
            return None
        return {"status": "timeout", "message": fault or self._waits or "none of its pods has come to a node"}

    async def _pass_on(self, hook: AsyncKubernetesHook, pod: str) -> None:
        """What node 0 has printed since the last look, into the task's log."""
        since = None if self._read_at is None else int(time.time() - self._read_at) + 2
        self._read_at, printed = time.time(), self._printed
        for line in await hook.read_logs(pod, self.namespace, NODE, since):
            at, _, text = line.partition(" ")
            if at > printed:  # the cluster writes all times with as many digits
                self.log.info("%s", text)
                self._printed = at

    async def _why(self, core: CoreV1Api, found: list[Any]) -> str:
        """What keeps the nodes from work: the scheduler's or the kubelet's words, else those of a quota."""
        if why := next(filter(None, map(waits_for, found)), ""):
            return why
        of = f"involvedObject.name={self.name}-{NODE}-0,type=Warning"
        events = (await core.list_namespaced_event(self.namespace, field_selector=of)).items
        return str(events[-1].message) if events else ""

    def _tell(self, why: str) -> None:
        if why and why != self._waits:
            self.log.info("TrainJob %s waits: %s", self.name, why)
        self._waits = why or self._waits


def selector(job: str) -> str:
    """What the pods of a TrainJob are listed by."""
    return f"{JOBSET}={job}"


def node(found: Iterable[Any], index: int) -> Any:
    """The pod of a node; None if there is none."""
    return next((pod for pod in found if number(pod) == index), None)


def number(pod: Any) -> int:
    """Which node a pod is."""
    return int((pod.metadata.annotations or {})[INDEX])


def end(job: dict[str, Any]) -> dict[str, Any] | None:
    """The condition that says how a TrainJob has ended."""
    conditions = job.get("status", {}).get("conditions", [])
    true = (condition for condition in conditions if condition["status"] == "True")
    return next((condition for condition in true if condition["type"] in ("Complete", "Failed")), None)


def taken(pod: Any) -> str:
    """Whether and why the cluster has taken a pod's place (evicted, preempted, its node gone)."""
    disrupted = [each for each in pod.status.conditions or [] if each.type == "DisruptionTarget"]
    why = disrupted[0].message or disrupted[0].reason if disrupted else pod.status.reason
    return f"node {number(pod)}: {why}" if why else ""


def waits_for(pod: Any) -> str:
    """What keeps a pod from work; nothing if it works."""
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"node {number(pod)}: {condition.message or condition.reason}"
    for status in pod.status.container_statuses or []:
        if status.state.waiting is not None:
            return f"node {number(pod)}: {status.state.waiting.message or status.state.waiting.reason}"
    return ""
