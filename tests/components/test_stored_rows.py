"""Packed rows on a real S3 server, and what is said when it does not do its work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import torch

from components.stage import StageFailed, give_up
from components.train import explained
from cslm import row_store
from cslm.packing import PackedRows, pack
from cslm.row_store import RowSource, RowStore, StoreAway, StoreRefuses
from cslm.sequences import Sequence
from tests.object_store import BUCKET, STRANGER, WRITER, ObjectStore

URI = f"s3://{BUCKET}/rows"


@pytest.fixture(scope="module", params=[False, True], ids=["http", "https"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with ObjectStore(tmp_path_factory.mktemp("store"), tls=request.param) as server:
        server.client(WRITER).create_bucket(Bucket=BUCKET)
        yield server


@pytest.fixture(autouse=True)
def writer(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_store, "ATTEMPTS", 2)
    monkeypatch.setattr(row_store, "FREE", 0)
    for name, value in server.environment(WRITER).items():
        monkeypatch.setenv(name, value)
    if server.authority:
        monkeypatch.setenv("AWS_CA_BUNDLE", str(server.authority))


def _pack(folder: Path, store: RowStore | None) -> PackedRows:
    sequences = [Sequence([2 + n] * 17, [2 + n] * 17, "asr", "en") for n in range(20)]
    pack(iter(sequences), folder, 32, 1, seed=1, store=store)
    return PackedRows(folder, RowSource(URI, str(folder.with_name("kept"))))


def test_rows_are_read_from_the_store_one_by_one(tmp_path: Path) -> None:
    local, stored = _pack(tmp_path / "local", None), _pack(tmp_path / "stored", RowStore(URI))
    [there] = boto3.client("s3").list_objects_v2(Bucket=BUCKET, Prefix="rows/")["Contents"]
    assert there["Key"] == f"rows/{stored.manifest.shards[0].name}"
    stored.read_soon([3])
    assert all(torch.equal(stored[i][plane], local[i][plane]) for i in (3, 19) for plane in local[i])
    [kept] = (tmp_path / "kept").iterdir()
    assert kept.stat().st_size == there["Size"], "row 19 is the last"


def test_a_store_that_is_away_is_another_try(
    server: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = _pack(tmp_path / "stored", RowStore(URI))
    stored[0]
    server.stop()
    try:
        stored[0]  # it is on the disk
        with pytest.raises(StageFailed) as failed, explained():
            stored[1]
        with pytest.raises(StoreAway):
            RowStore(URI).put(Path(__file__), 1, 10)
    finally:
        server.start()
    assert f"the store of packed rows, {URI} (compose.store), does not do its work" in str(failed.value)
    with pytest.raises(SystemExit) as ended:
        give_up(str(failed.value), failed.value)
    assert ended.value.code == os.EX_TEMPFAIL
    assert "AWS_ENDPOINT_URL" in capsys.readouterr().err
    assert stored[1]["input_ids"].shape == (32,), "it goes on when the store is back"


def test_who_may_not_read_is_told_so_for_good(
    server: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pack(tmp_path / "stored", RowStore(URI))
    for name, value in server.environment(STRANGER).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreRefuses, match="Check AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID") as refused:
        PackedRows(tmp_path / "stored", RowSource(URI, str(tmp_path / "nothing")))[0]
    assert not isinstance(refused.value, StoreAway)
    with pytest.raises(StoreRefuses) as refused:
        RowStore(URI).put(Path(__file__), 1, 10)
    assert not isinstance(refused.value, StoreAway)
