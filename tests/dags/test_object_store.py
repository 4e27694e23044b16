"""Outputs of stages on an S3 server that several machines share: a real one, with access control."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from tests.dags import toy
from tests.object_store import BUCKET, READER, STRANGER, WRITER, Keys, ObjectStore

REMOTE = f"s3://{BUCKET}/dvc"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with ObjectStore(tmp_path_factory.mktemp("store")) as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment(WRITER).items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield store


@pytest.fixture
def writer(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in store.environment(WRITER).items():
        monkeypatch.setenv(name, value)


def forget(project: Path) -> None:
    """Be another machine: the same commit, none of the outputs."""
    shutil.rmtree(project / "var" / "dvc-cache")
    toy.calls(project)


def test_another_machine_takes_what_ran_here_from_the_store(project: Path, writer: None) -> None:
    there = {"remote": REMOTE, "overrides": {"final.plus": 7}}
    assert toy.states(toy.pipeline(project, "here", **there))["final"] == "ran"
    keys = boto3.client("s3").list_objects_v2(Bucket=BUCKET, Prefix="dvc/")["Contents"]
    assert any("/runs/" in key["Key"] for key in keys), "the run cache is there"
    forget(project)
    states = toy.states(toy.pipeline(project, "there", **there))
    assert {states[name] for name in ("ingest@one", "double", "final")} == {"cached"}
    assert toy.calls(project) == []


def test_what_is_damaged_in_the_store_is_not_used_but_made_again(project: Path, writer: None) -> None:
    there = {"remote": REMOTE, "overrides": {"final.plus": 6}}
    toy.states(toy.pipeline(project, "whole", **there))
    digest = hashlib.md5(b"48").hexdigest()  # two times 21, and 6
    [key] = [
        each["Key"]
        for each in boto3.client("s3").list_objects_v2(Bucket=BUCKET, Prefix="dvc/")["Contents"]
        if each["Key"].replace("/", "").endswith(digest)
    ]
    boto3.client("s3").put_object(Bucket=BUCKET, Key=key, Body=b"84")
    forget(project)
    states = toy.states(toy.pipeline(project, "damaged", **there))
    assert (states["double"], states["final"]) == ("cached", "ran")
    told = [event.get("text") for event in toy.events(project, "damaged") if event["stage"] == "final"]
    assert told[-1] == f"{digest} is damaged, and not used"
    assert boto3.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read() == b"48"
    forget(project)
    assert toy.states(toy.pipeline(project, "mended", **there))["final"] == "cached"


@pytest.mark.parametrize(("run", "keys"), [("wrong-secret", STRANGER), ("no-right", READER)])
def test_a_store_that_refuses_is_named_with_what_to_do(
    project: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, run: str, keys: Keys
) -> None:
    for name, value in store.environment(keys).items():
        monkeypatch.setenv(name, value)
    process = toy.pipeline(project, run, remote=REMOTE, overrides={"final.plus": 8})
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"{REMOTE} (CSLM_DVC_REMOTE), does not do its work: Forbidden" in told
    assert "AWS_ACCESS_KEY_ID" in told
    assert keys.secret not in told, "no secret is printed"


def test_a_run_goes_on_when_the_store_is_back(project: Path, store: ObjectStore, writer: None) -> None:
    there = {"remote": REMOTE, "overrides": {"final.plus": 9}}
    store.stop()
    process = toy.pipeline(project, "away", **there)
    _, told = process.communicate(timeout=180)
    assert process.returncode == 1
    assert f"{REMOTE} (CSLM_DVC_REMOTE), does not do its work: Could not connect" in told
    store.start()
    assert toy.states(toy.pipeline(project, "back", **there))["final"] == "ran"


def test_a_right_that_is_taken_away_during_a_run_costs_no_work(
    project: Path, store: ObjectStore, writer: None
) -> None:
    there = {"remote": REMOTE, "overrides": {"double.factor": 5, "final.mode": "wait"}}
    toy.calls(project)
    process = toy.pipeline(project, "taken", **there)
    while not (project / "var" / "waits").exists():
        assert process.poll() is None
        time.sleep(0.1)
    store.let_write(False)
    (project / "var" / "go").touch()
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1
    for part in (
        "stage final failed",
        f"{REMOTE} (CSLM_DVC_REMOTE), does not do its work",
        "Forbidden",
        "AWS_SECRET_ACCESS_KEY and the rights on the bucket, then run this again: what is finished is kept",
    ):
        assert part in told
    assert WRITER.secret not in told
    assert toy.calls(project)[-2:] == ["double", "final"]

    store.let_write(True)
    states = toy.states(toy.pipeline(project, "taken", **there))
    assert (states["double"], states["final"]) == ("cached", "cached")
    assert toy.calls(project) == []
    digest = hashlib.md5(b"106").hexdigest()  # five times 21, and 1
    keys = boto3.client("s3").list_objects_v2(Bucket=BUCKET, Prefix="dvc/")["Contents"]
    assert any(each["Key"].replace("/", "").endswith(digest) for each in keys), "it is there now, as well"
