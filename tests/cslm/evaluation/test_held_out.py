"""Which items are evaluated, and which of them a limit takes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cslm.evaluation.held_out import read_held_out, spread
from cslm.tables import DIALOGUE, TRANSLATION


def _utterance(name: str, language: str = "en", split: str = "test", units: tuple[int, ...] = (1, 2)) -> Any:
    return {"id": name, "language": language, "split": split, "text": name, "units": list(units)}


def _dialogue(name: str, speech: str, languages: str = "en en", split: str = "test") -> Any:
    asked, answered = languages.split()
    return dict(zip(DIALOGUE.names, (name, split, asked, "why", speech, answered, "so", ""), strict=True))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    utterances = [_utterance("q1"), _utterance("q0"), _utterance("q2", "fr"), _utterance("q3", split="train")]
    (tmp_path / "aligned").mkdir()
    pq.write_table(
        pa.Table.from_pylist([*utterances, _utterance("q4", units=())]), tmp_path / "aligned/0.parquet"
    )
    rows = [
        _dialogue("b", "q1"),
        _dialogue("a", ""),
        _dialogue("c", "absent", "en zh"),
        _dialogue("d", "q2", "fr en"),
        _dialogue("e", "q3", split="train"),
    ]
    pq.write_table(pa.Table.from_pylist(rows, DIALOGUE), tmp_path / "dialogues.parquet")
    pq.write_table(pa.Table.from_pylist([], TRANSLATION), tmp_path / "translations.parquet")
    return tmp_path


def test_items_of_the_split_and_the_languages(work: Path) -> None:
    items = read_held_out(work / "aligned", work, "test", ["en", "zh"])
    assert [u.id for u in items.utterances] == ["q0", "q1"]
    assert [d.id for d in items.dialogues] == ["a", "b", "c"]
    assert [(d.id, d.question_units) for d in items.spoken] == [("b", (1, 2))]
    assert len(items.written) == 1  # the same question twice, and once in a cross-lingual dialogue
    assert items.translations == []


def test_a_missing_folder_is_named(work: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_held_out(work / "nowhere", work, "test", ["en"])


@given(st.integers(0, 300), st.one_of(st.none(), st.integers(1, 100)), st.integers(0, 50))
def test_a_limit_spreads_over_the_whole_list(n: int, limit: int | None, seed: int) -> None:
    chosen = spread(range(n), limit, seed)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == (n if limit is None else min(n, limit))
    if limit and n > limit:
        gaps = [b - a for a, b in itertools.pairwise(chosen)]
        assert all(abs(gap - n / limit) < 1 for gap in gaps)
        assert chosen == spread(range(n), limit, seed)
