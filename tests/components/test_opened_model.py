"""What the chat page opens: files of this machine where they lie, others brought once, whole and checked."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import boto3
import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.store.artifact import s3_artifact_repo

from components.chat.__main__ import files_of, open_registered
from components.register.result import result_digest
from tests.object_store import BUCKET, READER, WRITER, Keys, ObjectStore

PARTS = ("model", "tokenizer", "decoder")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with ObjectStore(tmp_path_factory.mktemp("store")) as store:
        with pytest.MonkeyPatch.context() as patch:
            ask_as(WRITER, store, patch)
            boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield store


@pytest.fixture
def home(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """CSLM_HOME with a registry, whose versions 1 and 2 lie in the object store; nothing is in use yet."""
    monkeypatch.setenv("CSLM_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    ask_as(WRITER, store, monkeypatch)
    client = boto3.client("s3")
    MlflowClient().create_registered_model("cslm")
    for number in (1, 2):
        folder = tmp_path / f"made-{number}" / "artifacts"
        for part in PARTS:
            (folder / part).mkdir(parents=True)
            (folder / part / "weights").write_text(f"{part} of {number}")
        (folder / "evaluation.json").write_text(json.dumps({"asr": {"en": {"wer": 0.1 * number}}}))
        for path in folder.rglob("*"):
            if path.is_file():
                client.upload_file(str(path), BUCKET, f"{number}/{path.relative_to(folder.parent)}")
        digest = result_digest(
            [folder / part for part in PARTS], json.loads((folder / "evaluation.json").read_text())
        )
        MlflowClient().create_model_version("cslm", f"s3://{BUCKET}/{number}", tags={"result_digest": digest})
    yield tmp_path
    mlflow.set_tracking_uri(before)


def ask_as(keys: Keys, store: ObjectStore, patch: pytest.MonkeyPatch) -> None:
    for name, value in store.environment(keys).items():
        patch.setenv(name, value)
    boto3.setup_default_session()  # it and MLflow's client have the keys of before
    s3_artifact_repo._cached_get_s3_client.cache_clear()


def test_files_of_an_object_store_are_brought_once(
    home: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = files_of("cslm", "1")
    assert (first / "model" / "weights").read_text() == "model of 1"
    assert first.is_relative_to(home / "chat")
    assert not list((home / "temporary").iterdir()), "no copy that nobody removes"
    ask_as(READER, store, monkeypatch)
    assert files_of("cslm", "1") == first, "it asks the store for nothing"
    ask_as(WRITER, store, monkeypatch)
    (first / "model" / "weights").write_text("something else")
    assert (files_of("cslm", "1") / "model" / "weights").read_text() == "model of 1"
    assert (files_of("cslm", "2") / "model" / "weights").read_text() == "model of 2"
    assert not first.exists(), "the version of before takes no room any more"


def test_a_store_that_refuses_or_is_away_is_told_in_one_line(
    home: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    MlflowClient().set_registered_model_alias("cslm", "production", "1")
    ask_as(READER, store, monkeypatch)
    with pytest.raises(SystemExit) as ended:
        open_registered("cslm")
    assert "the files of cslm version 1 (production) cannot be brought here" in str(ended.value)
    assert "Access Denied" in str(ended.value) and "the keys" in str(ended.value)
    ask_as(WRITER, store, monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3_artifact_repo._cached_get_s3_client.cache_clear()
    with pytest.raises(SystemExit) as ended:
        open_registered("cslm")
    assert ended.value.code == 75
    assert "cslm version 1 (production) cannot be brought here" in capsys.readouterr().err
