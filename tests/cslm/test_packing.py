"""Packing loses nothing and mixes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cslm.packing import PackedRows, fill_rows, pack
from cslm.sequences import IGNORE, Sequence

LENGTH = 32
PAD = 1


@given(st.lists(st.integers(1, LENGTH), max_size=80), st.integers(0, 9))
def test_every_sequence_is_in_one_row_that_holds_it(lengths: list[int], seed: int) -> None:
    rows = fill_rows(lengths, LENGTH, seed)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= LENGTH for row in rows)


def test_rows_are_at_least_98_percent_full_with_sequences_of_mixed_length() -> None:
    lengths = [45 + (i * 37) % 210 for i in range(3000)]
    rows = fill_rows(lengths, 512, seed=1)
    assert sum(lengths) / (512 * len(rows)) >= 0.98


@st.composite
def sequences(draw: st.DrawFn) -> list[Sequence]:
    """Sequences of 2 to 40 tokens, some too long for a row."""
    out = []
    for number in range(draw(st.integers(1, 25))):
        size = draw(st.integers(2, 40))
        ids = [100 * number + i for i in range(size)]
        prompt = draw(st.integers(1, size - 1))
        task = draw(st.sampled_from(["asr", "tts"]))
        out.append(Sequence(ids, [IGNORE] * prompt + ids[prompt:], task, "en", f"item {number}"))
    return out


@settings(max_examples=40)
@given(sequences())
def test_packed_rows_hold_exactly_the_sequences_that_fit(
    tmp_path_factory: pytest.TempPathFactory, given: list[Sequence]
) -> None:
    folder = tmp_path_factory.mktemp("packed")
    manifest = pack(iter(given), folder, LENGTH, PAD, seed=1)
    fitting = [sequence for sequence in given if len(sequence.input_ids) <= LENGTH]
    assert sum(manifest.too_long.values()) == len(given) - len(fitting)
    listed = [json.loads(line) for line in (folder / "too_long.jsonl").read_text("utf-8").splitlines()]
    assert {(entry["item"], entry["tokens"]) for entry in listed} == {
        (sequence.item, len(sequence.input_ids)) for sequence in given if len(sequence.input_ids) > LENGTH
    }
    assert manifest.tokens == sum(len(sequence.input_ids) for sequence in fitting)
    found = Counter()
    for row in PackedRows(folder):
        starts = [i for i in range(LENGTH) if row["position_ids"][i] == 0]
        for first, last in zip(starts, [*starts[1:], LENGTH], strict=True):
            ids, labels = row["input_ids"][first:last].tolist(), row["labels"][first:last].tolist()
            if set(ids) != {PAD}:
                assert row["position_ids"][first:last].tolist() == list(range(last - first))
                task = manifest.tasks[int(row["task"][first])].split(".")[0]
                found[tuple(ids), tuple(labels), task] += 1
    assert found == Counter((tuple(s.input_ids), tuple(s.labels), s.task) for s in fitting)


def test_attention_does_not_cross_documents(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    model, _ = tiny
    docs = [[5, 6, 7, 8, 9], [10, 11, 12], [13, 14, 15, 16]]
    pack((Sequence(ids, ids, "asr", "en") for ids in docs), tmp_path, 12, PAD, seed=1)
    row = PackedRows(tmp_path)[0]
    with torch.no_grad():
        packed = model(
            input_ids=row["input_ids"][None], position_ids=row["position_ids"][None], use_cache=False
        ).logits[0]
        for ids in docs:
            first = row["input_ids"].tolist().index(ids[0])
            alone = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
            torch.testing.assert_close(packed[first : first + len(ids)], alone)


def test_what_is_to_be_understood_lies_beside_the_labels(tmp_path: Path) -> None:
    plain = Sequence([9, 8], [IGNORE, 8], "text", "zh")
    heard = Sequence([5, 6, 7, 8], [IGNORE, IGNORE, IGNORE, 8], "asr", "zh", understood={1: 90, 2: 91})
    manifest = pack(iter([plain, heard]), tmp_path, LENGTH, PAD, seed=1)
    (row,) = PackedRows(tmp_path)
    first = row["input_ids"].tolist().index(5)
    assert row["labels"][first : first + 4].tolist() == [IGNORE, IGNORE, IGNORE, 8]
    assert row["understood"][first : first + 4].tolist() == [IGNORE, 90, 91, IGNORE]
    assert (row["understood"] != IGNORE).sum() == 2
    assert sorted(manifest.tasks) == ["asr.zh", "listening.zh", "text.zh"]
    assert manifest.sequences == {"asr.zh": 1, "text.zh": 1}


def test_long_sequences_wait_for_short_ones_that_fill_the_gaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cslm.packing.WINDOW", 200)
    long = [Sequence([9] * 23, [9] * 23, "dialogue", "en") for _ in range(170)]
    short = [Sequence([8] * 9, [8] * 9, "asr", "en") for _ in range(170)]
    manifest = pack(iter([*long, *short]), tmp_path, LENGTH, PAD, seed=1)
    assert manifest.utilization > 0.98
    found = Counter(int(token) for row in PackedRows(tmp_path) for token in row["input_ids"])
    assert (found[9], found[8]) == (170 * 23, 170 * 9), "none is lost on the way"


def test_ten_times_as_much_is_packed_in_the_same_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cslm.packing.WINDOW", 100)
    monkeypatch.setattr("cslm.packing.ROWS_PER_SHARD", 8)
    peaks = []
    for count in (500, 5000):
        sizes = (2 + n * 7 % LENGTH for n in range(count))  # up to one that is too long
        tracemalloc.start()
        pack(
            (Sequence([9] * n, [9] * n, "asr", "en") for n in sizes), tmp_path / str(count), LENGTH, PAD, seed=1
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert len(PackedRows(tmp_path / "5000")) > 9 * len(PackedRows(tmp_path / "500")) > 0
    assert peaks[1] < 1.2 * peaks[0]


READ_ALL = """
import resource, sys
from pathlib import Path
from cslm.packing import PackedRows
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
rows = PackedRows(Path(sys.argv[1]))
print(*(int(rows[index]["input_ids"][0]) for index in reversed(range(len(rows)))))
"""


def test_more_files_are_read_than_a_process_may_have_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cslm.packing.ROWS_PER_SHARD", 1)
    pack((Sequence([9 + n] * 23, [9] * 23, "asr", "en") for n in range(300)), tmp_path, LENGTH, PAD, seed=1)
    assert len(list(tmp_path.glob("rows-*.npy"))) == 300
    read = subprocess.run([sys.executable, "-c", READ_ALL, tmp_path], stdout=subprocess.PIPE, check=True)
    assert sorted(map(int, read.stdout.split())) == list(range(9, 309))
