"""Checkpoints on a real S3 server: another machine goes on from what arrived whole, and from nothing else."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from transformers.trainer_utils import sort_checkpoints

from components import checkpoint_store
from components.checkpoint_store import CheckpointStore
from components.checkpoints import checkpoints_of
from components.stage import Stage, StageFailed
from cslm.training import checkpoints
from tests.object_store import BUCKET, READER, STRANGER, WRITER, Keys, ObjectStore

URI = f"s3://{BUCKET}/checkpoints"
NAME = "pretrain-0123456789abcdef"
LARGE = 20 << 20
"""More than one part of a multipart upload."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with ObjectStore(tmp_path_factory.mktemp("store")) as server, pytest.MonkeyPatch.context() as patch:
        _ask_as(WRITER, server, patch)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield server


@pytest.fixture(autouse=True)
def writer(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    _ask_as(WRITER, server, monkeypatch)
    yield
    for key in _keys():
        boto3.client("s3").delete_object(Bucket=BUCKET, Key=key)


def _ask_as(keys: Keys, server: ObjectStore, patch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment(keys).items():
        patch.setenv(name, value)


def _keys(prefix: str = "") -> list[str]:
    listed = boto3.client("s3").list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    return [each["Key"] for each in listed.get("Contents", [])]


def _training(folder: Path, step: int, size: int = 1000) -> dict[str, bytes]:
    """A checkpoint folder as a training leaves it after a step; what it holds."""
    content = {
        f"checkpoint-{step}/model.safetensors": random.Random(step).randbytes(size),
        f"checkpoint-{step}/whole": b"",
        "mlflow_run_id": b"run",
    }
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return content


def _content(folder: Path) -> dict[str, bytes]:
    files = (f for f in folder.rglob("*") if f.is_file() and f.name != checkpoint_store.NEWEST)
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def test_another_machine_goes_on_from_what_was_brought(tmp_path: Path) -> None:
    folder = tmp_path / "here" / NAME
    _training(folder, 10, LARGE)
    here = CheckpointStore(URI, NAME)
    assert here.upload(folder)
    assert not here.upload(folder), "nothing has changed"
    half = folder / "checkpoint-20" / "model.safetensors"
    half.parent.mkdir()
    half.write_bytes(b"half of it")
    (folder / "state.partial").write_bytes(b"half of it")
    assert not here.upload(folder), "what is being written does not count"
    there = tmp_path / "there" / NAME
    assert CheckpointStore(URI, NAME).restore(there)
    shutil.rmtree(half.parent)
    (folder / "state.partial").unlink()
    assert _content(there) == _content(folder)
    assert not CheckpointStore(URI, "pretrain-another").restore(tmp_path / "another")
    assert checkpoint_store.WHOLE == checkpoints.WHOLE


def test_what_was_brought_is_as_old_as_its_step(tmp_path: Path) -> None:
    folder = tmp_path / "here" / NAME
    for step in (90, 100, 40):
        _training(folder, step)
    assert CheckpointStore(URI, NAME).upload(folder)
    there = tmp_path / "there" / NAME
    assert CheckpointStore(URI, NAME).restore(there)
    (there / "checkpoint-110").mkdir()
    oldest_first = [Path(path).name for path in sort_checkpoints(str(there), use_mtime=True)]
    assert oldest_first == [f"checkpoint-{step}" for step in (40, 90, 100, 110)]


def test_what_was_brought_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    digest = checkpoint_store._digest

    def note(path: Path) -> str:
        read.append(f"{path.parent.name}/{path.name}")
        return digest(path)

    folder, store = tmp_path / "here" / NAME, CheckpointStore(URI, NAME)
    _training(folder, 10)
    assert store.upload(folder)
    _training(folder, 20)
    (folder / "checkpoint-10" / "latest_universal").write_bytes(b"made since")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_store, "_digest", note)
        assert store.upload(folder)
    of_before = [path for path in read if path.startswith("checkpoint-10/")]
    assert of_before == ["checkpoint-10/latest_universal"]
    assert "checkpoint-20/model.safetensors" in read
    there = tmp_path / "there" / NAME
    assert CheckpointStore(URI, NAME).restore(there)
    assert _content(there) == _content(folder)


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    folder, store = tmp_path / NAME, CheckpointStore(URI, NAME)
    for step in (10, 20, 30):
        shutil.rmtree(folder, ignore_errors=True)
        _training(folder, step)
        assert store.upload(folder)
    states = _keys(f"checkpoints/{NAME}/states/")
    assert [Path(key).stem for key in states] == ["00000002", "00000003"]
    different = {"model of 20", "model of 30", "whole", "run"}
    assert len(_keys(f"checkpoints/{NAME}/files/")) == len(different)


def test_a_server_that_dies_in_the_middle_leaves_the_state_before(
    tmp_path: Path, server: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, store = tmp_path / "here" / NAME, CheckpointStore(URI, NAME)
    before = _training(folder, 10)
    assert store.upload(folder)
    _training(folder, 20, LARGE)

    def die(**_: Any) -> None:
        server.stop()

    store._s3.meta.events.register("after-call.s3.UploadPart", die)
    try:
        with pytest.raises(checkpoint_store.REFUSED):
            store.upload(folder)
        store._try(folder)
        assert "is tried again" in capsys.readouterr().out
    finally:
        store._s3.meta.events.unregister("after-call.s3.UploadPart", die)
        server.start()
    there = tmp_path / "there" / NAME
    assert CheckpointStore(URI, NAME).restore(there)
    assert _content(there) == before
    assert store.upload(folder), "and it is brought when the server is back"
    assert CheckpointStore(URI, NAME).restore(there)
    assert _content(there) == _content(folder)


@pytest.mark.parametrize("damage", ["other bytes", "gone", "no JSON", "leads out"])
def test_a_damaged_state_is_passed_over(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, store, s3 = tmp_path / "here" / NAME, CheckpointStore(URI, NAME), boto3.client("s3")
    before = _training(folder, 10)
    assert store.upload(folder)
    known = set(_keys())
    _training(folder, 20)
    assert store.upload(folder)
    [file, state] = sorted(set(_keys()) - known)
    bad = json.dumps({"finished": False, "files": {"../outside": Path(file).name}}).encode()
    if damage == "gone":
        s3.delete_object(Bucket=BUCKET, Key=file)
    else:
        key, body = {
            "other bytes": (file, b"x" * 1000),
            "no JSON": (state, b"{"),
            "leads out": (state, bad),
        }[damage]
        s3.put_object(Bucket=BUCKET, Key=key, Body=body)
    there = tmp_path / "there" / NAME
    assert CheckpointStore(URI, NAME).restore(there)
    assert _content(there) == before
    assert "cannot be used, an older one is looked for" in capsys.readouterr().out
    assert not (tmp_path / "there" / "outside").exists()


@pytest.mark.parametrize("keys", [STRANGER, READER])
def test_a_store_that_refuses_is_named_with_what_to_do(
    keys: Keys, tmp_path: Path, server: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _ask_as(keys, server, monkeypatch)
    monkeypatch.setenv("CSLM_CHECKPOINTS", URI)
    with pytest.raises(StageFailed, match=f"{URI} .*AWS_ACCESS_KEY_ID") as told:
        CheckpointStore(URI, NAME).restore(tmp_path / NAME)
    assert keys.secret not in str(told.value)


@pytest.mark.parametrize("uri", ["bucket/checkpoints", "file:///checkpoints", "s3://", "s3://B/x"])
def test_an_address_that_is_none_is_refused(uri: str) -> None:
    with pytest.raises(StageFailed, match="is no place in an object store"):
        CheckpointStore(uri, NAME)


def test_a_training_is_brought_away_while_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_store, "EVERY_S", 0.1)
    folder = tmp_path / "here" / NAME
    _training(folder, 10)
    with pytest.raises(ZeroDivisionError), CheckpointStore(URI, NAME).mirrored(folder):
        _training(folder, 20)
        raise ZeroDivisionError
    there = tmp_path / "there" / NAME
    assert CheckpointStore(URI, NAME).restore(there)
    assert _content(there) == _content(folder)


def test_what_finished_trainings_left_is_removed_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, finished in (("pretrain-old", True), ("pretrain-running", False), ("finetune-old", True)):
        _training(tmp_path / name, 10)
        if finished:
            (tmp_path / name / "finished").touch()
        assert CheckpointStore(URI, name).upload(tmp_path / name)
    CheckpointStore(URI, NAME).restore(tmp_path / NAME)
    assert _keys("checkpoints/pretrain-old/"), "the day is not over"
    monkeypatch.setattr(checkpoint_store, "SWEPT", -checkpoint_store.SWEPT)
    CheckpointStore(URI, NAME).restore(tmp_path / NAME)
    assert not _keys("checkpoints/pretrain-old/")
    assert _keys("checkpoints/pretrain-running/")
    assert _keys("checkpoints/finetune-old/"), "another stage's"


def test_finished_work_is_done_once_more_if_it_is_forced_and_begun_work_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "here" / NAME
    _training(folder, 10)
    here, there = CheckpointStore(URI, NAME), tmp_path / "there" / NAME
    assert here.upload(folder)
    assert CheckpointStore(URI, NAME).restore(there, anew=True), "it was killed, and tried again"
    (folder / checkpoint_store.FINISHED).touch()
    assert here.upload(folder)
    assert not CheckpointStore(URI, NAME).restore(tmp_path / "forced" / NAME, anew=True)
    assert CheckpointStore(URI, NAME).restore(tmp_path / "asked" / NAME)


def test_who_has_begun_goes_on_from_what_another_machine_did_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(Path(__file__).parents[2] / "params.yaml", tmp_path)
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": {"pretrain": {"deps": [], "params": ["seed"]}}}))
    monkeypatch.chdir(tmp_path)

    def train(machine: str, step: int | None) -> tuple[Path, dict[str, bytes]]:
        """The folder, and what it holds before; the machine is lost after the step."""
        monkeypatch.setenv("CSLM_HOME", str(tmp_path / machine))
        with pytest.raises(KeyboardInterrupt), checkpoints_of(Stage("pretrain")) as folder:
            found = _content(folder)
            if step is not None:
                _training(folder, step)
            raise KeyboardInterrupt
        return folder, found

    folder, _ = train("here", None)
    (folder / "mlflow_run_id").write_text("of a try that made no checkpoint")
    monkeypatch.setenv("CSLM_CHECKPOINTS", URI)
    there, _ = train("there", 20)
    folder, found = train("here", None)
    assert found == _content(there)
    _training(folder, 30)
    train("here", None)
    shutil.rmtree(folder / "checkpoint-30")
    _, found = train("here", None)
    assert found == _content(there), "who removes a checkpoint goes on from the one before"


def test_work_that_is_further_than_the_store_is_kept(tmp_path: Path) -> None:
    here, there = tmp_path / "here" / NAME, tmp_path / "there" / NAME
    _training(here, 10)
    assert CheckpointStore(URI, NAME).upload(here)
    assert CheckpointStore(URI, NAME).restore(there)
    _training(here, 20)  # and its machine is lost before that is brought
    _training(there, 15)
    assert CheckpointStore(URI, NAME).upload(there)
    mine = _content(here)
    assert not CheckpointStore(URI, NAME).restore(here)
    assert _content(here) == mine
    assert CheckpointStore(URI, NAME).upload(here)
    assert CheckpointStore(URI, NAME).restore(there)
    assert _content(there) == _content(here)


def test_work_whose_steps_nobody_counts_is_compared_by_time(tmp_path: Path) -> None:
    here, there = tmp_path / "here" / NAME, tmp_path / "there" / NAME
    for folder, written in ((here, time.time() - 60), (there, time.time() - 30)):
        folder.mkdir(parents=True)
        (folder / "state.pt").write_text(str(folder))
        os.utime(folder / "state.pt", (written, written))
    assert CheckpointStore(URI, NAME).upload(there)
    (here / "noise.pt").touch()
    later = time.time() + 60
    os.utime(here / "noise.pt", (later, later))
    assert not CheckpointStore(URI, NAME).restore(here)
    (here / "noise.pt").unlink()
    assert CheckpointStore(URI, NAME).restore(here)
    assert (here / "state.pt").read_text() == str(there)
