"""Run a compiled pipeline here, each task in its container, by kfp.local and a container engine.

Run:  DOCKER_HOST=unix:///run/podman/podman.sock .venv/kubeflow/bin/python infra/kubeflow/local.py \\
          PIPELINE.yaml --remote FOLDER --outputs FOLDER

kfp.local runs one task after the other, with the same limits for all, and keeps a cache of tasks as a cluster
does: here beside the outputs that it tells of, in the remote. The remote is a folder, which is mounted.
"""

import argparse
import functools
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import docker
import yaml
from docker.errors import DockerException
from docker.types import Mount
from kfp import components, local
from requests import RequestException

SHARED_MEMORY_B = 2**30
MAX_PROCESSES = 4096
SILENCE_S = 24 * 3600
"""How long a task may print nothing."""
UNREACHABLE = (DockerException, RequestException)
CACHE = "kubeflow-cache"


def main() -> int:
    arguments = _arguments()
    try:
        client = docker.from_env()
        rootless = any("rootless" in option for option in client.info().get("SecurityOptions") or [])
        present = {tag for image in client.images.list() for tag in image.tags}
    except UNREACHABLE as error:
        return _fail(
            f"no container engine answers at {os.environ.get('DOCKER_HOST') or 'its usual place'}: start "
            f"dockerd, or podman system service, and name it in DOCKER_HOST ({error})"
        )
    containers = _containers(arguments.pipeline)
    if missing := sorted({each["image"] for each in containers} - present):
        return _fail(f"the image {missing[0]} is not there: `make images` builds it")
    tracked = any(each["name"] == "MLFLOW_TRACKING_URI" for each in containers[0]["env"])
    # kfp.local asks for a client without arguments, which gives up on a task that says nothing for a minute.
    docker.from_env = functools.partial(docker.from_env, timeout=SILENCE_S)
    local.init(
        local.DockerRunner(**_options(arguments.remote, rootless, tracked)),
        pipeline_root=str(arguments.outputs),
        enable_caching=True,
        cache_root=str(arguments.remote / CACHE),
    )
    logging.getLogger().setLevel(logging.INFO)
    warnings.filterwarnings("ignore", message=".*have no effect in the current local runner.*")
    try:
        components.load_component_from_file(str(arguments.pipeline))(remote=str(arguments.remote))
    except ValueError as error:  # of a container that was gone before its exit code was asked for
        return _fail(f"a task failed, though kfp.local calls it a success: {error} What it said stands above")
    except (RuntimeError, *UNREACHABLE) as error:
        return _fail(f"{error} What it said stands above")
    return 0


def _containers(pipeline: Path) -> list[dict[str, Any]]:
    spec = next(yaml.safe_load_all(pipeline.read_text("utf-8")))
    return [each["container"] for each in spec["deploymentSpec"]["executors"].values()]


def _options(remote: Path, rootless: bool, tracked: bool) -> dict[str, Any]:
    """What every container is started with: no rights, the remote to write to, a network for MLflow alone."""
    return {
        # Else the command of a task would be arguments of its image's own.
        "entrypoint": "/usr/bin/env",
        "user": "0:0" if rootless else f"{os.getuid()}:{os.getgid()}",
        "mounts": [Mount(str(remote), str(remote), "bind")],
        "read_only": True,
        "tmpfs": {"/tmp": ""},
        "network_mode": "host" if tracked else "none",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "pids_limit": MAX_PROCESSES,
        "shm_size": SHARED_MEMORY_B,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", type=Path, help="what infra/kubeflow/compiler.py has written")
    parser.add_argument("--remote", type=Path, required=True, help="folder that all tasks share")
    parser.add_argument("--outputs", type=Path, required=True, help="folder of what kfp.local keeps of a run")
    return parser.parse_args()


def _fail(message: str) -> int:
    print(f"kubeflow: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
