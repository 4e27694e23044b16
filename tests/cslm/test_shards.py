"""Shards give the rows that are asked for, and read no sound of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cslm.shards import ROWS_PER_GROUP, UTTERANCE, ShardWriter, read_rows

SPLITS = ("train", "test", "dev")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards; in each a row group of train alone, then one of train and test, then one of dev alone."""
    with ShardWriter(tmp_path, UTTERANCE, rows_per_shard=3 * ROWS_PER_GROUP) as shards:
        for number in range(6 * ROWS_PER_GROUP):
            group = number // ROWS_PER_GROUP % 3
            split = SPLITS[group if number % 5 == 0 or group != 1 else 0]
            about = {"id": f"u{number:04d}", "text": "Far.", "language": "en", "speaker": "ann", "split": split}
            sound = {"audio": number.to_bytes(2, "big") * 500, "duration_s": 1.0, "sample_rate": 16_000}
            shards.write(about | sound | {"source": "test"})
    return tmp_path


def spoil_sound(path: Path, group: int) -> None:
    """Overwrite the audio of a row group: who reads it fails."""
    with pq.ParquetFile(path) as file:
        assert file.num_row_groups == len(SPLITS)
        found = file.metadata.row_group(group)
        columns = [found.column(number) for number in range(found.num_columns)]
        [audio] = [column for column in columns if column.path_in_schema == "audio"]
        begin = min(at for at in (audio.dictionary_page_offset, audio.data_page_offset) if at)
        length = audio.total_compressed_size
    with path.open("r+b") as raw:
        raw.seek(begin)
        raw.write(b"\xff" * length)


def plainly(folder: Path, split: str | None = None) -> list[dict[str, Any]]:
    rows = [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return [row for row in rows if split in (None, row["split"])]


def test_rows_come_in_order(folder: Path) -> None:
    assert list(read_rows(folder)) == plainly(folder)
    assert [row["id"] for row in read_rows(folder, ["id"])] == [row["id"] for row in plainly(folder)]


def test_of_a_split_no_other_sound_is_read(folder: Path) -> None:
    expected = plainly(folder, "test")
    assert len(expected) > ROWS_PER_GROUP // 5
    for path in folder.glob("*.parquet"):
        spoil_sound(path, 0)
        spoil_sound(path, 2)
    with pytest.raises(OSError):
        list(read_rows(folder, ["audio"]))
    assert list(read_rows(folder, splits=["test"])) == expected
    sounds = [{name: row[name] for name in ("audio", "split")} for row in expected]
    assert list(read_rows(folder, ["audio"], ["test"])) == sounds


def test_of_ids_no_other_sound_is_read(folder: Path) -> None:
    wanted = plainly(folder, "dev")[-1]
    first, last = sorted(folder.glob("*.parquet"))
    for group in range(3):
        spoil_sound(first, group)
    spoil_sound(last, 0)
    spoil_sound(last, 1)
    assert list(read_rows(folder, ids=[wanted["id"], "unheard of"])) == [wanted]
    assert list(read_rows(folder, splits=["test"], ids=[wanted["id"]])) == []


def test_nothing_is_read_where_nothing_is_asked_for(folder: Path) -> None:
    for path in folder.glob("*.parquet"):
        path.write_bytes(b"no Parquet")
    assert list(read_rows(folder, splits=["test"], ids=[])) == []
    with pytest.raises(FileNotFoundError, match=r"no shards \(\*\.parquet\) there"):
        list(read_rows(folder / "elsewhere", ids=[]))
