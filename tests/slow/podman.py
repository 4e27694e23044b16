"""A container engine for tests, and the images of the stages in it."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.end_to_end.checkout import ORCHESTRATOR, ROOT, environment

BASE = "localhost/cslm-base"
START_S = 120
LOCK = Path(tempfile.gettempdir()) / f"cslm-images-{os.getuid()}.lock"
"""Who builds images holds it: all processes of a user share one store of images."""
HOME = Path(os.environ.get("CSLM_HOME") or ROOT / "var").absolute()
"""Where wheels are kept; as it is before tests change the variable."""
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
IMAGES = sorted({row.get("do", row)["meta"]["image"] for row in STAGES.values()})
CONFIGURATION = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=30000:30000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
"""What podman needs where no systemd runs."""
NEEDED = pytest.mark.skipif(
    not (shutil.which("podman") and shutil.which("mmdebstrap")),
    reason="needs podman: apt-get install podman runc mmdebstrap",
)


@contextmanager
def service(folder: Path) -> Iterator[dict[str, str]]:
    """A container engine that speaks Docker's API, and the variables of runs in it.

    Containers have no network here, so what they tell MLflow stays out of the object store of other tests.
    """
    (folder / "containers.conf").write_text(CONFIGURATION)
    address = f"unix://{folder}/podman.sock"
    variables = {
        "CONTAINERS_CONF": str(folder / "containers.conf"),
        "DOCKER_HOST": address,
        "MLFLOW_EXPERIMENT_NAME": "contained",
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            ["podman", "system", "service", "--time=0", address],
            env=environment(ROOT) | variables,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + START_S
        while not (folder / "podman.sock").exists():
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield variables
    finally:
        process.terminate()
        process.wait()


def build(clone: Path, engine: dict[str, str], wanted: list[str] | None = None) -> dict[str, str]:
    """Component -> its image, for all stages or what is wanted; the wheels are the checkout's, made once."""
    names = IMAGES if wanted is None else wanted
    variables = environment(clone) | engine | {"CSLM_HOME": str(HOME)}
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if subprocess.run(["podman", "image", "exists", BASE], env=variables, check=False).returncode:
            subprocess.run([ROOT / "infra" / "images" / "base.sh"], env=variables, check=True)
        result = subprocess.run(
            [ORCHESTRATOR, "-m", "infra.build_images", *names, "--from", BASE],
            cwd=clone,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 0, result.stdout + result.stderr
    built = [line.split()[0] for line in result.stdout.splitlines() if line.startswith("localhost/cslm-")]
    assert len(built) == len(names)
    return dict(zip(names, built, strict=True))


def run(engine: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of podman and its outcome."""
    return subprocess.run(
        ["podman", *arguments],
        cwd=Path(
            engine["CONTAINERS_CONF"]
        ).parent,  # where it leaves a file if a container needs too much memory
        env=environment(ROOT) | engine,
        capture_output=True,
        text=True,
        check=False,
    )


def containers(engine: dict[str, str], wanted: str) -> list[str]:
    """Ids of those with a label or a volume (a filter of `podman ps`): other tests may have others by now."""
    found = run(engine, "ps", "--all", "--quiet", "--no-trunc", f"--filter={wanted}")
    assert found.returncode == 0, found.stderr
    return found.stdout.split()
