"""Training speech is heard at every speed, held-out speech only as it was recorded."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.tokenize.__main__ import UTTERANCES, versions
from cslm.shards import UTTERANCE


def test_speeds_are_for_training_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    empty = {"audio": b"", "sample_rate": 16000, "text": "", "speaker": "", "source": ""}
    rows = [
        empty | {"id": name, "language": language, "split": split, "duration_s": 1.8}
        for name, language, split in (("a", "en", "train"), ("b", "en", "test"), ("c", "zh", "train"))
    ]
    UTTERANCES.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(UTTERANCE)), UTTERANCES / "shard-00000.parquet")
    heard = [(row["id"], row["speed"], row["duration_s"]) for row in versions("en", [0.9, 1.2])]
    assert heard == [
        ("a", 1.0, 1.8),
        ("a", 0.9, pytest.approx(2.0)),
        ("a", 1.2, pytest.approx(1.5)),
        ("b", 1.0, 1.8),
    ]
