"""The components' images, built and run by podman; the whole graph with every stage in its container."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.end_to_end.checkout import ORCHESTRATOR, ROOT, demo, environment

BASE = "localhost/cslm-base"
USER = "10001"
START_S = 30
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

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not (shutil.which("podman") and shutil.which("mmdebstrap")),
        reason="needs podman: apt-get install podman runc mmdebstrap",
    ),
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A container engine that speaks Docker's API, and the variables that name it."""
    folder = tmp_path_factory.mktemp("podman")
    (folder / "containers.conf").write_text(CONFIGURATION)
    address = f"unix://{folder}/podman.sock"
    variables = {"CONTAINERS_CONF": str(folder / "containers.conf"), "DOCKER_HOST": address}
    with (folder / "log").open("w") as log:
        service = subprocess.Popen(
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
        service.terminate()
        service.wait()


@pytest.fixture(scope="module")
def images(clone: Path, engine: dict[str, str]) -> dict[str, str]:
    """Component -> its image, for all stages."""
    variables = environment(clone) | engine
    if subprocess.run(["podman", "image", "exists", BASE], env=variables, check=False).returncode:
        subprocess.run([ROOT / "infra" / "images" / "base.sh"], env=variables, check=True)
    result = subprocess.run(
        [ORCHESTRATOR, "-m", "infra.build_images", *IMAGES, "--from", BASE],
        cwd=clone,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    names = [line.split()[0] for line in result.stdout.splitlines() if line.startswith("localhost/cslm-")]
    assert len(names) == len(IMAGES)
    return dict(zip(IMAGES, names, strict=True))


def _podman(engine: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["podman", *arguments],
        env=environment(ROOT) | engine,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("component", ["validate", "tokenize"])
def test_an_image_tells_its_usage_and_holds_no_more_than_it_needs(
    component: str, images: dict[str, str], engine: dict[str, str], clone: Path
) -> None:
    closed = ["run", "--rm", "--read-only", "--network=none", "--cap-drop=ALL"]
    usage = _podman(engine, *closed, images[component], "--help")
    assert usage.returncode == 0, usage.stderr
    assert f"components.{component}" in usage.stdout
    look = "id -u; command -v gcc cc make pip pip3 git curl; find /opt/cslm -name '*.env' -o -name '.git'; true"
    inside = _podman(engine, *closed, "--entrypoint=sh", images[component], "-c", look)
    assert inside.stdout.split() == [USER], "another user, or tools that no stage needs"
    [facts] = json.loads(_podman(engine, "image", "inspect", images[component]).stdout)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=clone, capture_output=True, text=True, check=True)
    assert facts["Labels"]["org.opencontainers.image.revision"].startswith(head.stdout.strip())


def test_the_smaller_environment_has_no_torch(images: dict[str, str], engine: dict[str, str]) -> None:
    found = {
        component: _podman(
            engine,
            "run",
            "--rm",
            "--entrypoint=sh",
            images[component],
            "-c",
            "ls /opt/components/lib/*/site-packages",
        )
        for component in ("validate", "tokenize")
    }
    assert "torch" in found["tokenize"].stdout.split()
    assert "torch" not in found["validate"].stdout.split()


def test_every_stage_works_in_a_container_and_gives_the_same(
    clone: Path, first: tuple[str, float], images: dict[str, str], engine: dict[str, str]
) -> None:
    output, _ = demo(clone, RUN="contained", CSLM_RUNNER="docker", FORCE="validate tokenize", **engine)
    assert "registered: version 1 (unchanged" in output, output
    assert _outputs(clone, "contained") == _outputs(clone, "first")
    for stage, row in STAGES.items():
        logs = list((clone / "var" / "logs" / "contained").glob(f"{stage}*.log"))
        assert logs
        image = images[row.get("do", row)["meta"]["image"]]
        assert all(f"Starting docker container from image {image}" in log.read_text() for log in logs)
    assert _podman(engine, "ps", "--all", "--quiet").stdout == "", "a container is left"


def _outputs(clone: Path, run: str) -> dict[str, str]:
    """Digests of what the stages of a run made; their metrics name the run and how long it took."""
    stages = yaml.safe_load((clone / "var" / "runs" / run / "dvc.lock").read_text("utf-8"))["stages"]
    outs = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
    return {path: digest for path, digest in outs.items() if path.startswith("work/")}


def test_a_missing_image_is_an_error_that_says_what_to_do(clone: Path, engine: dict[str, str]) -> None:
    said = _failure(clone, engine | {"CSLM_REGISTRY": "localhost/nowhere"})
    assert "is not there: `make images` builds it" in said


def test_a_stage_may_not_take_more_memory_than_it_is_given(
    clone: Path, images: dict[str, str], engine: dict[str, str]
) -> None:
    graph = (clone / "dvc.yaml").read_text("utf-8")
    (clone / "dvc.yaml").write_text(graph.replace("memory: 2Gi", "memory: 200Mi"), "utf-8")
    try:
        said = _failure(clone, engine | {"FORCE": "validate"})
    finally:
        (clone / "dvc.yaml").write_text(graph, "utf-8")
    assert "it needs more than its memory, 200Mi (dvc.yaml, stage validate, meta)" in said
    assert _podman(engine, "ps", "--all", "--quiet").stdout == "", "a container is left"


def _failure(clone: Path, variables: dict[str, str]) -> str:
    """All that a run in containers says that must fail."""
    result = subprocess.run(
        [ORCHESTRATOR, "-m", "infra.demo"],
        cwd=clone,
        env=environment(clone) | variables | {"CSLM_RUNNER": "docker"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    return result.stdout + result.stderr
