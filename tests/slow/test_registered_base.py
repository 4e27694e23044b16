"""A run that goes on from a registered version."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import mlflow
import pytest

from tests.end_to_end.checkout import demo

pytestmark = pytest.mark.timeout(1800)


def test_a_run_continues_from_a_registered_version(clone: Path, first: str, store: dict[str, str]) -> None:
    """Its weights come by their digests from the run that made it, so the new commit is whole by itself."""
    demo(clone, RUN="further", BASE="candidate", **store)
    show = ["git", "show", "runs/further:params.yaml"]
    params = subprocess.run(show, cwd=clone, capture_output=True, text=True, check=True).stdout
    assert "checkpoint: models/registered/model" in params
    client = mlflow.MlflowClient(f"sqlite:///{clone}/var/mlflow.db")
    assert client.get_model_version_by_alias("cslm", "candidate").tags["pipeline_run"] == "further"
    backbone = json.loads((clone / "var/runs/further/metrics/backbone.json").read_text("utf-8"))
    before = json.loads((clone / "var/runs/first/metrics/backbone.json").read_text("utf-8"))
    assert backbone["vocabulary"] == before["vocabulary"]
