"""The whole graph with everything in an S3 store with access control, and another machine that uses it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import boto3
import mlflow
import pytest

from tests.end_to_end import checkout
from tests.object_store import BUCKET

pytestmark = pytest.mark.timeout(1800)
STAGES = 13
"""All but `register`, which is no cached stage."""


def _ended(home: Path, run: str) -> Counter[str]:
    events = (home / "runs" / run / "events.jsonl").read_text("utf-8").splitlines()
    ends = [json.loads(line) for line in events]
    return Counter(each["state"] for each in ends if each["stage"] and each["state"] in ("ran", "cached"))


def _keys(prefix: str) -> list[str]:
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return [each["Key"] for page in pages for each in page.get("Contents", [])]


def test_everything_is_in_the_store(clone: Path, first: str) -> None:
    assert "registered: version 1 (new, candidate)" in first
    assert _ended(clone / "var", "first") == {"ran": STAGES + 1}
    assert any("/files/md5/" in key for key in _keys("dvc/"))
    states = _keys("checkpoints/")
    assert {key.split("/")[1].split("-")[0] for key in states if "/states/" in key} >= {"pretrain", "finetune"}
    reports = [key for key in _keys("mlflow/") if key.endswith("evaluation/index.html")]
    assert reports
    experiment = mlflow.MlflowClient(f"sqlite:///{clone}/var/mlflow.db").get_experiment_by_name("cslm")
    assert experiment is not None and experiment.artifact_location.startswith(f"s3://{BUCKET}/mlflow")


def test_another_machine_runs_nothing_again_and_opens_the_model(
    clone: Path, first: str, store: dict[str, str], tmp_path: Path
) -> None:
    home = tmp_path / "another"
    output, _ = checkout.demo(clone, RUN="another", CSLM_HOME=str(home), **store)
    assert "registered: version 1 (new, candidate)" in output, "in a registry of its own"
    assert _ended(home, "another") == {"cached": STAGES, "ran": 1}
    assert checkout.outputs(home, "another") == checkout.outputs(clone / "var", "first")
    mlflow.set_tracking_uri(f"sqlite:///{home}/mlflow.db")
    [answer] = (
        mlflow.pyfunc.load_model("models:/cslm@candidate")
        .predict([{"text": "What is the capital of France?"}])
        .to_dict("records")
    )
    assert answer["answer"]
