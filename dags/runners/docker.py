"""Stages in containers, through Airflow's DockerOperator: by dockerd, or by `podman system service`.

The image is the environment (make images); the code is the run's own, out of its workspace. A container sees
CSLM_HOME, the embedded store and the folders of CSLM_MOUNTS, each where it lies on the machine, and may write
only to the first; it has the network only if MLflow or the store of the stages' outputs is on one. It works as
the user that runs Airflow, so that its files belong to that user. The engine is DOCKER_HOST's.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.docker.exceptions import DockerContainerFailedException
from airflow.providers.docker.operators.docker import DockerOperator
from airflow.sdk.exceptions import AirflowException
from docker import APIClient
from docker.errors import APIError, DockerException
from docker.types import DeviceRequest, Mount

from dags import dvc_stage, failures, graph, images, places, run, runners
from dags.runners import container

if TYPE_CHECKING:
    from airflow.sdk import Context

STAGES = graph.read_graph(places.PROJECT / "dvc.yaml")
REMOTE = "CSLM_DVC_REMOTE"
STORES = (REMOTE, "CSLM_CHECKPOINTS", "AWS_ENDPOINT_URL")
LABEL = "cslm.home"
"""Label of the containers of stages: CSLM_HOME, which tells whose they are."""
SHARED_MEMORY_B = 2**30
MAX_PROCESSES = 4096
NANO = 1_000_000_000


def task_of(stage: graph.Stage, facts: Any, items: Any = None) -> Any:
    """A task that brings the stage, or one of its items, to its end in a container."""
    arguments = {**runners.arguments(stage), "stage_name": stage.name}
    if items is None:
        return StageContainer(**arguments, facts=facts)
    return StageContainer.partial(**arguments, facts=facts).expand(item=items)


class StageContainer(DockerOperator):
    """A container that brings one stage to its end."""

    template_fields = ("facts", "item")

    def __init__(self, *, stage_name: str, facts: Any, item: str | None = None, **arguments: Any) -> None:
        stage = STAGES[stage_name]
        super().__init__(
            image=images.name(str(stage.meta["image"])),
            docker_url=_engine(),
            user=f"{os.getuid()}:{os.getgid()}",
            cpus=float(stage.meta.get("cpus", 1)),
            mem_limit=container.memory_bytes(str(stage.meta.get("memory", "4Gi"))),
            device_requests=_gpus(runners.gpus(stage)),
            network_mode=_network(stage_name),
            shm_size=SHARED_MEMORY_B,
            mount_tmp_dir=False,
            do_xcom_push=True,
            labels={LABEL: str(places.home())},
            **arguments,
        )
        self.stage_name, self.facts, self.item = stage_name, facts, item
        self._line: run.Log | None = None

    def execute(self, context: Context) -> str:
        """Bring the stage to its end; `cached` or `ran`."""
        if self.item is not None:
            context["item"] = self.item  # type: ignore[typeddict-unknown-key]
        stage, log = STAGES[self.stage_name], super().log.info
        with failures.readable():
            return run.run_stage(self.facts, stage, self.item, log, self._launch)

    def _launch(self, work: run.Work, line: run.Log) -> int:
        """Run dags/dvc_stage.py in the container; its exit code. As `run.launch` does it in a process.

        Raises:
            MachineAway: no engine, or it refuses.
            RunFailed: no image.
        """
        self.entrypoint, self.command = list(images.STAGE_COMMAND), work.arguments
        self.working_dir = str(work.workspace)
        cpus = min(int(self.cpus), runners.CORES)
        gpus = runners.gpus(STAGES[self.stage_name])
        self.environment = container.environment(work.environment, cpus, self.stage_name, gpus)
        self.mounts = _mounts()
        self.container_name = re.sub(r"[^A-Za-z0-9_.-]", ".", f"cslm-{self.facts['run']}-{work.address}")
        self._line, begun = line, False
        try:
            if any("rootless" in option for option in self.cli.info().get("SecurityOptions") or []):
                self.user = "0:0"  # which there is the user that runs the engine
            if not self.cli.images(name=self.image):
                raise run.RunFailed(f"the image {self.image} is not there: `make images` builds it")
            self._remove(self.container_name)  # what a task left that was killed
            begun = True
            with suppress(DockerContainerFailedException):
                super().execute({})
            state = self.cli.inspect_container(self.container_name)["State"]
        except (AirflowException, DockerException) as error:
            raise run.MachineAway(
                f"the container engine at {self.docker_url} does not do its work: {error}. Start it (dockerd, "
                "or podman system service) and name it in DOCKER_HOST, then run this again"
            ) from error
        finally:
            self._line = None
            if begun:
                self._remove(self.container_name)
        if state.get("OOMKilled") or state["ExitCode"] == dvc_stage.KILLED:
            line(container.killed(STAGES[self.stage_name]))
        return int(state["ExitCode"])

    def on_kill(self) -> None:
        """End the container with the task; Airflow gives it less time than DockerOperator takes."""
        if self.container_name:
            self._remove(self.container_name)

    def _remove(self, container: str) -> None:
        try:
            self.cli.remove_container(container, force=True)
        except APIError as error:
            if error.status_code != 404:
                raise

    @property
    def log(self) -> Any:
        """Airflow's log; while a container works, its lines go through `dags.run` first."""
        return super().log if self._line is None else _Lines(super().log, self._line)

    @cached_property
    def cli(self) -> APIClient:
        """The engine's client, whose containers get the limits that DockerOperator has no argument for."""
        client = self.hook.api_client
        client.create_host_config = partial(  # type: ignore[method-assign]
            client.create_host_config,
            read_only=True,
            tmpfs={"/tmp": ""},
            init=False,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            pids_limit=MAX_PROCESSES,
            nano_cpus=int(min(self.cpus, runners.CORES) * NANO),
        )
        return client


def remove_leftovers() -> int:
    """Remove the containers that killed runs of this CSLM_HOME have left; how many. No run may work there."""
    with suppress(DockerException):  # a run will say that there is no engine
        client = APIClient(base_url=_engine(), version="auto")
        left = client.containers(all=True, filters={"label": f"{LABEL}={places.home()}"})
        for each in left:
            client.remove_container(each["Id"], force=True)
        return len(left)
    return 0


def _engine() -> str:
    return os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"


class _Lines:
    """Stands for a logger: what is told to it at level info goes to a function."""

    def __init__(self, log: Any, line: run.Log) -> None:
        self._log, self._line = log, line

    def info(self, text: str, *values: object) -> None:
        self._line(text % values if values else text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


def _gpus(count: int) -> list[DeviceRequest] | None:
    return [DeviceRequest(count=count, capabilities=[["gpu"]])] if count else None


def _network(stage: str) -> str:
    """CSLM_NETWORK, or the machine's network, if the stage has somebody to speak to on it; else none."""
    remote = (
        "".join(os.environ.get(name, "") for name in STORES) + places.tracking_uri() + places.artifacts_uri()
    )
    judge = stage == container.JUDGED and os.environ.get(container.JUDGE_KEY)
    if not judge and not re.search(r"(?<!file)(?<!sqlite)://", remote):
        return "none"
    return os.environ.get("CSLM_NETWORK") or "host"


def _mounts() -> list[Mount]:
    """The same paths inside as outside, since workspaces link into the cache; Airflow's keys are hidden."""
    home, remote = places.home(), os.environ.get(REMOTE, "")
    nothing = home / "run" / "nothing"
    nothing.mkdir(parents=True, exist_ok=True)
    given = [
        *os.environ.get("CSLM_MOUNTS", "").split(os.pathsep),
        *(os.environ.get(name) for name in container.FILES),
    ]
    readable = {path for path in (str(places.PROJECT / "store"), *given) if path and Path(path).exists()}
    writable = {str(home), *([remote] if remote and "://" not in remote else [])}
    return [
        *(Mount(path, path, "bind") for path in sorted(writable)),
        *(Mount(path, path, "bind", read_only=True) for path in sorted(readable)),
        Mount(str(home / "airflow"), str(nothing), "bind", read_only=True),
    ]
