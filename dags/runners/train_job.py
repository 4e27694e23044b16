"""Stages on several nodes, as TrainJobs of Kubeflow Trainer (CSLM_NODES, and `nodes` in dvc.yaml's `meta`).

Every node is a pod like that of any other stage (dags.runners.pods), in the same workspace on the same volume.
Node 0 works as that pod would: it restores inputs, runs the stage, keeps what comes out. The others wait for a
training to join (dags/dvc_stage.py, cslm.training.join), so nothing is done or pushed twice. torchrun's
variables, by which they meet, come from Trainer; the runtime that all TrainJobs name is in
infra/kubernetes/overlays/nodes.

A TrainJob is named after run and stage, so there are never two: who tries again finds the one of before at
work, or removes what is left of it first. While it works the task is deferred (`train_job_trigger`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import TaskDeferralTimeout
from kubernetes.client import ApiClient, ApiException, CoreV1Api, CustomObjectsApi

from dags import dvc_stage, failures, graph, images, parameters, places, run, runners
from dags.runners import container, pods, train_job_trigger
from dags.runners.train_job_trigger import KIND, NODE

if TYPE_CHECKING:
    from airflow.sdk import Context

STAGES = graph.read_graph(places.PROJECT / "dvc.yaml")
RUNTIME = "cslm"
LONGEST_NAME = 44
"""The pods' names, which Kubernetes makes of a TrainJob's, are up to 19 letters longer."""
JOB_FILE = "CSLM_JOB"
"""Variable: where node 0 tells the others what to train (cslm.training.nodes)."""
GONE_S = 120
"""How long the pods of a TrainJob that was removed may take to end."""
TAIL_LINES = 12
REFUSED = (400, 403, 404, 422)


def task_of(stage: graph.Stage, facts: Any, items: Any = None) -> Any:
    """A task that brings the stage to its end on several nodes."""
    assert items is None, "a stage of many items has a pod for each of them"
    return StageTrainJob(**runners.arguments(stage), stage_name=stage.name, facts=facts)


class StageTrainJob(BaseOperator):
    """A TrainJob that brings one stage to its end."""

    template_fields = ("facts",)

    def __init__(self, *, stage_name: str, facts: Any, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.stage_name, self.facts = stage_name, facts

    def execute(self, context: Context) -> None:
        """Make the TrainJob, or find it at work, and wait for it deferred."""
        stage = STAGES[self.stage_name]
        with failures.readable():
            work = run.work_of(self.facts, stage, None)
            with run.reported(self.facts, work.address), pods.reachable():
                at_work = _at_work(self._found())
            if not at_work:
                run.start_stage(self.facts, stage, None)
                with run.reported(self.facts, work.address), pods.reachable():
                    self._create(described(self._name, stage, work))
        deadline = time.time() + pods.SCHEDULED_S
        trigger = train_job_trigger.TrainJobTrigger(self._name, pods.namespace(), deadline)
        # Airflow applies execution_timeout to what a worker does, not while a task is deferred.
        self.defer(trigger=trigger, method_name=self.gathered.__name__, timeout=self.execution_timeout)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after the trigger; a TrainJob that works for too long is removed, and tried again."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            hours = runners.longest_stage().total_seconds() / 3600
            cause = (
                f"stage {self.stage_name} failed\n  cause:\n    the TrainJob {self._name} worked for more than "
                f"{hours:g} hours ({runners.STAGE_HOURS}), and is stopped; another try goes on from its last "
                "checkpoint"
            )
            with failures.readable(), run.reported(self.facts, self.stage_name), pods.reachable():
                self._delete()
                raise run.MachineAway(cause) from None

    def gathered(self, context: Context, event: dict[str, Any]) -> str:
        """Gather what the TrainJob has made, and remove it; `cached` or `ran`."""

        def doing(line: run.Log) -> int:
            with pods.reachable():
                try:
                    return self._ended(event, line)
                finally:
                    self._delete()

        with failures.readable():
            # Airflow's triggerer has logged the lines already.
            return run.end_stage(self.facts, STAGES[self.stage_name], None, lambda text: None, doing)

    def on_kill(self) -> None:
        """End the TrainJob with the task."""
        self._delete()

    @property
    def _name(self) -> str:
        return pods.name(str(self.facts["run"]), self.stage_name, LONGEST_NAME)

    @property
    def _one(self) -> dict[str, str]:
        return {**KIND, "namespace": pods.namespace(), "name": self._name}

    def _found(self) -> dict[str, Any] | None:
        return _or_none(lambda: _jobs().get_namespaced_custom_object(**self._one))

    def _delete(self) -> None:
        """Remove the TrainJob; it is gone when its pods are."""
        _or_none(lambda: _jobs().delete_namespaced_custom_object(**self._one, propagation_policy="Foreground"))

    def _create(self, job: dict[str, Any]) -> None:
        """Make the TrainJob, in the place of one that has failed.

        Raises:
            RunFailed: the cluster will have none like this.
            MachineAway: it has no room now, or does not remove the old one.
        """
        until = time.monotonic() + GONE_S
        while (found := self._found()) is not None:
            if "deletionTimestamp" not in found["metadata"]:
                self._delete()
            if time.monotonic() > until:
                raise run.MachineAway(f"the TrainJob {self._name} of an earlier try does not go away")
            time.sleep(1)
        try:
            _jobs().create_namespaced_custom_object(**KIND, namespace=pods.namespace(), body=job)
        except ApiException as error:
            why = pods.said(error)
            if error.status == 409:  # another worker was faster
                return
            if error.status not in REFUSED or "exceeded quota" in why:
                raise
            raise run.RunFailed(
                f"the cluster refuses the TrainJob {self._name}: {why}. Several nodes (CSLM_NODES) need "
                "Kubeflow Trainer 2.2 or later and what `kubectl apply -k infra/kubernetes/overlays/nodes` "
                "brings: see Many nodes in docs/operators.md"
            ) from error

    def _ended(self, event: dict[str, Any], line: run.Log) -> int:
        """Exit code of the stage, all of whose lines are told.

        Raises:
            RunFailed: the nodes could not begin.
            MachineAway: one of them was lost.
        """
        selected = train_job_trigger.selector(self._name)
        found = _core().list_namespaced_pod(pods.namespace(), label_selector=selected).items
        first = train_job_trigger.node(found, 0)
        for text in self._lines(first):
            line(text)
        if event["status"] == "complete":
            return 0
        if event["status"] == "timeout":
            raise run.RunFailed(
                f"the TrainJob {self._name} did not begin to work: {event['message']}\n"
                f"Its image is {images.name(str(STAGES[self.stage_name].meta['image']))}: `make images` builds "
                "it, CSLM_REGISTRY names where it is pushed to"
            )
        failed = sorted((pod for pod in found if _code(pod)), key=_finished)
        lost = event["lost"] or next(filter(None, map(_taken, failed)), "")
        if event["status"] != "failed" or lost or not failed:
            raise run.MachineAway(f"the TrainJob {self._name} was lost: {lost or event['message']}")
        culprit = failed[0]
        if train_job_trigger.number(culprit):
            for text in self._lines(culprit)[-TAIL_LINES:]:
                line(f"node {train_job_trigger.number(culprit)}: {text}")
        state = _state(culprit)
        if state.reason == pods.OUT_OF_MEMORY or state.exit_code == dvc_stage.KILLED:
            line(container.killed(STAGES[self.stage_name]))
        return int(state.exit_code)

    def _lines(self, pod: Any) -> list[str]:
        """All that a node has printed; nothing if it is gone."""
        if pod is None:
            return []
        try:
            log = _core().read_namespaced_pod_log(
                pod.metadata.name, pod.metadata.namespace, container=NODE, _preload_content=False
            )
        except ApiException as error:
            self.log.warning("the log of pod %s cannot be read: %s", pod.metadata.name, pods.said(error))
            return []
        return [str(text) for text in log.data.decode("utf-8", "replace").splitlines()]


def described(name: str, stage: graph.Stage, work: run.Work) -> dict[str, Any]:
    """The TrainJob of a stage whose workspace is made.

    Raises:
        RunFailed: the ranks cannot be shared among the nodes, or a file of theirs lies not on the volume.
    """
    nodes, gpus = runners.nodes(stage), runners.gpus(stage)
    ranks = int(parameters.read(work.workspace / "params.yaml")[stage.name].get("ranks", 1))
    if ranks % nodes:
        raise run.RunFailed(
            f"stage {stage.name} failed\n  cause:\n    {stage.name}.ranks: {ranks} cannot be shared among "
            f"{nodes} nodes (CSLM_NODES): each needs as many, so {nodes} or a multiple of it, or CSLM_NODES=1"
        )
    volumes, mounts = pods.volumes()
    where = work.workspace / ".dvc" / "tmp" / "ranks.json"
    pod = {
        "securityContext": pods.user(),
        "volumes": volumes,
        "containers": [{"name": NODE, "volumeMounts": mounts}],
    }
    if gpus:
        pod |= {"tolerations": stage.meta.get("tolerations"), "nodeSelector": stage.meta.get("node_selector")}
    if account := pods.account():
        pod["serviceAccountName"] = account
    job = {
        "apiVersion": f"{KIND['group']}/{KIND['version']}",
        "kind": "TrainJob",
        "metadata": {"name": name, "labels": dict(pods.LABELS)},
        "spec": {
            "runtimeRef": {"apiGroup": KIND["group"], "kind": "TrainingRuntime", "name": RUNTIME},
            "trainer": {
                "image": images.name(str(stage.meta["image"])),
                "command": list(images.STAGE_COMMAND),
                "args": work.arguments,
                "numNodes": nodes,
                "numProcPerNode": ranks // nodes,
                "resourcesPerNode": pods.resources(stage.meta, gpus),
                "env": pods.variables(work.environment | {JOB_FILE: str(where)}, stage),
            },
            "runtimePatches": [
                {
                    "manager": "cslm/airflow",
                    "trainingRuntimeSpec": {
                        "template": {
                            "spec": {
                                "replicatedJobs": [
                                    {"name": NODE, "template": {"spec": {"template": {"spec": _given(pod)}}}}
                                ]
                            }
                        }
                    },
                }
            ],
        },
    }
    return dict(ApiClient().sanitize_for_serialization(job))


def _given(pod: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in pod.items() if value is not None}


def _jobs() -> CustomObjectsApi:
    return KubernetesHook().custom_object_client


def _core() -> CoreV1Api:
    return KubernetesHook().core_v1_client


def _or_none(asked: Callable[[], Any]) -> Any:
    """The cluster's answer; None if there is no such thing."""
    try:
        return asked()
    except ApiException as error:
        if error.status != 404:
            raise
        return None


def _at_work(job: dict[str, Any] | None) -> bool:
    """Whether a TrainJob works, or has done its work and waits to be gathered."""
    if job is None or "deletionTimestamp" in job["metadata"]:
        return False
    ended = train_job_trigger.end(job)
    return ended is None or ended["type"] == "Complete"


def _state(pod: Any) -> Any:
    """How a node ended; None if it has not, or nobody knows."""
    statuses = pod.status.container_statuses or []
    return next((each.state.terminated for each in statuses if each.name == NODE), None)


def _code(pod: Any) -> int:
    state = _state(pod)
    return int(state.exit_code) if state is not None else 0


def _finished(pod: Any) -> Any:
    return _state(pod).finished_at


def _taken(pod: Any) -> str:
    """Whether and why a node was taken, or told to end for a reason other than another node's failure."""
    if why := train_job_trigger.taken(pod):
        return why
    told = _code(pod) in run.TOLD_TO_END and pod.metadata.deletion_timestamp is None
    return f"node {train_job_trigger.number(pod)} was told to end" if told else ""
