"""The components' images, built and run by podman; the whole graph with every stage in its container."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.checkout import demo, failure, outputs
from tests.slow import podman

USER = "10001"

pytestmark = [pytest.mark.timeout(1800), podman.NEEDED]


@pytest.mark.parametrize("component", ["validate", "tokenize"])
def test_an_image_tells_its_usage_and_holds_no_more_than_it_needs(
    component: str, images: dict[str, str], engine: dict[str, str], clone: Path
) -> None:
    closed = ["run", "--rm", "--read-only", "--network=none", "--cap-drop=ALL"]
    usage = podman.run(engine, *closed, images[component], "--help")
    assert usage.returncode == 0, usage.stderr
    assert f"components.{component}" in usage.stdout
    look = "id -u; command -v gcc cc make pip pip3 git curl; find /opt/cslm -name '*.env' -o -name '.git'; true"
    inside = podman.run(engine, *closed, "--entrypoint=sh", images[component], "-c", look)
    assert inside.stdout.split() == [USER], "another user, or tools that no stage needs"
    [facts] = json.loads(podman.run(engine, "image", "inspect", images[component]).stdout)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=clone, capture_output=True, text=True, check=True)
    assert facts["Labels"]["org.opencontainers.image.revision"].startswith(head.stdout.strip())


def test_the_smaller_environment_has_no_torch(images: dict[str, str], engine: dict[str, str]) -> None:
    found = {
        component: podman.run(
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
    clone: Path, first: str, images: dict[str, str], engine: dict[str, str]
) -> None:
    own = _own(clone)
    # As of a run that was killed:
    left = podman.run(engine, "run", "--detach", f"--{own}", "--entrypoint=sleep", images["validate"], "1000")
    assert podman.containers(engine, own) == [left.stdout.strip()], left.stderr
    output, _ = demo(clone, RUN="contained", CSLM_RUNNER="docker", FORCE="validate tokenize", **engine)
    assert "registered: version 1 (unchanged" in output, output
    assert outputs(clone / "var", "contained") == outputs(clone / "var", "first")
    for stage, row in podman.STAGES.items():
        logs = list((clone / "var" / "logs" / "contained").glob(f"{stage}*.log"))
        assert logs
        image = images[row.get("do", row)["meta"]["image"]]
        assert all(f"Starting docker container from image {image}" in log.read_text() for log in logs)
    assert not podman.containers(engine, own), "a container is left"


def test_a_missing_image_is_an_error_that_says_what_to_do(clone: Path, engine: dict[str, str]) -> None:
    said = failure(clone, CSLM_RUNNER="docker", CSLM_REGISTRY="localhost/nowhere", **engine)
    assert "is not there: `make images` builds it" in said


def test_a_stage_may_not_take_more_memory_than_it_is_given(
    clone: Path, images: dict[str, str], engine: dict[str, str]
) -> None:
    graph = (clone / "dvc.yaml").read_text("utf-8")
    (clone / "dvc.yaml").write_text(graph.replace("memory: 2Gi", "memory: 200Mi"), "utf-8")
    try:
        said = failure(clone, CSLM_RUNNER="docker", FORCE="validate", **engine)
    finally:
        (clone / "dvc.yaml").write_text(graph, "utf-8")
    assert "it needs more than its memory, 200Mi (dvc.yaml, stage validate, meta)" in said
    assert not podman.containers(engine, _own(clone)), "a container is left"


def _own(clone: Path) -> str:
    """The label of the containers of a clone's stages (dags/runners/docker.py)."""
    return f"label=cslm.home={clone / 'var'}"
