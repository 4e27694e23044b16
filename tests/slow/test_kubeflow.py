"""The graph, compiled for Kubeflow Pipelines and run by kfp.local: a container of its image for every stage."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end import checkout
from tests.slow import podman

KFP = checkout.ROOT / ".venv" / "kubeflow"

pytestmark = [
    pytest.mark.timeout(1800),
    podman.NEEDED,
    pytest.mark.skipif(not KFP.exists(), reason="needs .venv/kubeflow: infra/setup.sh kubeflow"),
]


def _pipeline(clone: Path, engine: dict[str, str]) -> str:
    """What `make kubeflow-local FORCE=validate` says; tasks share the cache of the runs of before."""
    result = subprocess.run(
        [checkout.ORCHESTRATOR, "-m", "infra.kubeflow", "--local"],
        cwd=clone,
        env=checkout.environment(clone) | engine | {"FORCE": "validate"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_the_compiled_graph_runs_in_containers_and_gives_the_same(
    clone: Path, first: str, images: dict[str, str], engine: dict[str, str]
) -> None:
    told = _pipeline(clone, engine)
    # Not of all tasks: kfp.local removes a container that ends, at times before its last line is read.
    states = dict(re.findall(r"^ *([a-z_]+(?:@\w+)?): (ran|cached) *$", told, re.MULTILINE))
    assert states.pop("validate", "ran") == "ran"
    assert set(states.values()) == {"cached"}
    digests: dict[str, str] = {}
    for outputs in re.findall(r"outputs: '(\{.*\})'", told):
        digests |= {path: md5 for path, md5 in json.loads(outputs).items() if path.startswith("work/")}
    expected = checkout.outputs(clone / "var", "first")
    assert digests == {path: md5 for path, md5 in expected.items() if path != "work/quarantine"}, (
        "nobody reads it"
    )

    again = _pipeline(clone, engine)
    assert len(re.findall(r"cache hit", again)) == 12, "all but the one that is forced"
    shared = clone / "var" / "dvc-cache"
    assert not podman.containers(engine, f"volume={shared}"), "a container is left"
