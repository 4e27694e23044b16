"""Rows in a store are the rows of the folder, read once, and never others than those that were written."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cslm import row_store
from cslm.packing import PLANES, PackedRows, pack
from cslm.row_store import RowsLost, RowSource, RowStore, StoreRefuses
from cslm.sequences import Sequence
from cslm.training import train
from cslm.training.order import ReadAhead, RowOrder
from cslm.training.steps import AHEAD
from tests.tiny import TRAINING

LENGTH = 32


class Packed(NamedTuple):
    """The same rows as files of a folder, and in a store."""

    local: PackedRows
    folder: Path
    store: Path
    kept: Path

    def open(self) -> PackedRows:
        return PackedRows(self.folder, RowSource(f"file://{self.store}", str(self.kept)))


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packed:
    """61 rows in shards of 8."""
    monkeypatch.setattr("cslm.packing.ROWS_PER_SHARD", 8)
    monkeypatch.setattr(row_store, "FREE", 0)
    sequences = [Sequence([2 + n] * 17, [2 + n] * 17, "asr", "en") for n in range(61)]
    pack(iter(sequences), tmp_path / "local", LENGTH, 1, seed=1)
    pack(iter(sequences), tmp_path / "rows", LENGTH, 1, seed=1, store=RowStore(f"file://{tmp_path}/store"))
    local = PackedRows(tmp_path / "local")
    assert len(local) == 61
    return Packed(local, tmp_path / "rows", tmp_path / "store", tmp_path / "kept")


def _same(one: PackedRows, other: PackedRows, indices: range | list[int]) -> bool:
    return all(torch.equal(one[i][plane], other[i][plane]) for i in indices for plane in one[i])


def test_rows_are_the_same_from_a_store(packed: Packed) -> None:
    stored = packed.open()
    assert len(stored) == 61
    assert _same(packed.local, stored, range(61))
    files = sorted(path.name for path in packed.folder.iterdir())
    assert files == ["checks.npy", "manifest.json", "too_long.jsonl"]
    assert len(list(packed.store.iterdir())) == 8


def test_what_was_read_is_asked_for_no_more(packed: Packed) -> None:
    assert _same(packed.local, packed.open(), [3, 60])
    for path in packed.store.iterdir():
        path.unlink()
    again = packed.open()
    assert _same(packed.local, again, [60, 3])
    with pytest.raises(RowsLost, match=r"file://.*/store .* has no [0-9a-f]{64}\.npy"):
        again[20]


def test_a_row_that_has_rotted_on_the_disk_is_read_again(packed: Packed) -> None:
    packed.open()[3]
    [kept] = packed.kept.iterdir()
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    assert _same(packed.local, packed.open(), [3])
    kept.write_bytes(content[:-100])  # a machine that lost power in the middle
    assert _same(packed.local, packed.open(), [3])


def test_a_disk_that_fails_is_none(packed: Packed, caplog: pytest.LogCaptureFixture) -> None:
    packed.kept.write_text("no folder")
    assert _same(packed.local, packed.open(), [3, 4])
    [told] = caplog.messages
    assert str(packed.kept) in told and "File exists" in told


def test_a_row_that_is_not_what_was_written_is_refused(packed: Packed) -> None:
    for path in packed.store.iterdir():
        content = bytearray(path.read_bytes())
        content[-1] ^= 1  # of the last row of each shard
        path.write_bytes(content)
    stored = packed.open()
    assert _same(packed.local, stored, [6])
    with pytest.raises(RowsLost, match="is not what was written"):
        stored[7]


def test_rows_that_are_asked_for_soon_are_read_before(packed: Packed) -> None:
    stored = packed.open()
    stored.read_soon([3, 60])
    while sum(_holds(packed, stored, index) for index in (3, 60)) < 2:
        time.sleep(0.01)
    for path in (*packed.store.iterdir(), *packed.kept.iterdir()):
        path.unlink()
    assert _same(packed.local, stored, [60, 3])
    stored.read_soon([4])
    stored.close()
    assert _same(packed.local, stored, [4]), "it is read when it is asked for"


def test_a_volume_that_is_not_there_is_told_and_not_made(packed: Packed, tmp_path: Path) -> None:
    elsewhere = RowSource(f"file://{tmp_path}/not-mounted", str(packed.kept))
    with pytest.raises(RowsLost, match=r"not-mounted .* has no"):
        PackedRows(packed.folder, elsewhere)[0]
    assert not (tmp_path / "not-mounted").exists()
    (tmp_path / "file").touch()
    with pytest.raises(StoreRefuses, match="Check that the volume is mounted here"):
        RowStore(f"file://{tmp_path}/file/folder").put(packed.folder / "manifest.json", 1, 10)
    with pytest.raises(ValueError, match=r"in a store \(compose\.store\)"):
        PackedRows(packed.folder)


def test_a_disk_that_is_nearly_full_keeps_nothing_and_says_so(
    packed: Packed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(row_store, "FREE", 0.1)
    usage = row_store.shutil.disk_usage(packed.folder)._replace(total=1000, used=901, free=99)
    monkeypatch.setattr(row_store.shutil, "disk_usage", lambda _: usage)
    stored = packed.open()
    assert _same(packed.local, stored, [3, 9])
    assert not list(packed.kept.iterdir())
    stored.close()
    first, last = caplog.messages
    assert "0.0 of its 0.0 GB are free, and 10% stay so" in first and "CSLM_ROWS" in first
    read = 2 * len(PLANES)  # `_same` asks for a row once a plane
    assert last == f"{read} rows were read from the store that were not kept in {packed.kept}"


def test_what_was_interrupted_in_the_store_is_brought_again(packed: Packed, tmp_path: Path) -> None:
    [half, *_] = packed.store.iterdir()
    half.write_bytes(half.read_bytes()[:-100])
    sequences = [Sequence([2 + n] * 17, [2 + n] * 17, "asr", "en") for n in range(61)]
    pack(iter(sequences), tmp_path / "again", LENGTH, 1, seed=1, store=RowStore(f"file://{tmp_path}/store"))
    assert _same(packed.local, packed._replace(folder=tmp_path / "again").open(), range(61))
    assert len(list(packed.store.iterdir())) == 8, "what was there is there once"


def test_each_rank_reads_its_own_rows_ahead(packed: Packed) -> None:
    order = RowOrder(61, 4, 1, lambda: 0)
    taken = list(order)
    for rank in (0, 1):
        read: list[int] = []
        batches = iter(ReadAhead(order, 2, read.extend, rank, 2, AHEAD))
        mine = [index for place, index in enumerate(taken) if place // 2 % 2 == rank]
        assert next(batches) == taken[:2]
        assert read == mine[: len(read)]
        assert len(read) in (2 * AHEAD, 2 * AHEAD + 2), "as many micro batches ahead, and no more"
        assert [index for batch in batches for index in batch] == taken[2:]
        assert read == mine


def test_a_training_from_a_store_has_the_same_losses(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], packed: Packed, tmp_path: Path
) -> None:
    def losses(rows: PackedRows, folder: Path) -> list[float]:
        config = dataclasses.replace(
            TRAINING, batch_tokens=4 * LENGTH, epochs=9.0, micro_batch_tokens=2 * LENGTH
        )
        trained = train(copy.deepcopy(tiny[0]), rows, config, folder, lambda step, numbers: None)
        return [entry["loss"] for entry in trained.log]

    assert TRAINING.max_steps == 8
    stored = packed.open()
    assert losses(stored, tmp_path / "b") == losses(packed.local, tmp_path / "a")
    whole = sum(_holds(packed, stored, index) for index in range(61))
    assert 32 <= whole <= 32 + 4 * (AHEAD + 2), "only what eight steps of four rows took, and what came next"


def _holds(packed: Packed, stored: PackedRows, index: int) -> bool:
    """Whether a row is on the disk."""
    shard = stored.manifest.shards[index // 8]
    path = packed.kept / shard.name
    if not path.exists():
        return False
    size = 5 * LENGTH * 4
    first = shard.offset + index % 8 * size
    return bool(np.frombuffer(path.read_bytes()[first : first + size], np.int32).any())


MEASURE = """
import sys
from itertools import chain, islice, repeat
from pathlib import Path
from cslm.packing import PackedRows
from cslm.training.order import RowOrder

rows = PackedRows(Path(sys.argv[1]))
order = RowOrder(len(rows), 8, 1, lambda: 10**6)
for index in islice(chain.from_iterable(repeat(order)), 4000):
    assert rows[index]["input_ids"].shape == (1024,)
own = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
print(len(rows) * 1024, own.split()[1])
"""


def test_a_billion_tokens_take_the_memory_of_a_hundred_thousand(tmp_path: Path) -> None:
    own = {}
    for shards, rows in ((1, 98), (239, 4096)):
        folder = tmp_path / str(shards)
        folder.mkdir()
        for number in range(shards):
            with (folder / f"rows-{number:05d}.npy").open("wb") as file:
                shape = (rows, 5, 1024)
                np.lib.format.write_array_header_1_0(
                    file, {"descr": "<i4", "fortran_order": False, "shape": shape}
                )
                file.truncate(file.tell() + 4 * rows * 5 * 1024)  # a hole on the disk, zeros when it is read
        (folder / "manifest.json").write_text(f'{{"length": 1024, "rows": {shards * rows}}}')
        measured = subprocess.run(
            [sys.executable, "-c", MEASURE, folder], check=True, capture_output=True, text=True, timeout=300
        )
        tokens, kilobytes = map(int, measured.stdout.split())
        own[tokens] = kilobytes
    few, many = sorted(own)
    assert few >= 10**5 and many >= 10**9
    assert own[many] < 1.2 * own[few]
