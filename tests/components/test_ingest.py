"""`python -m components.ingest` as a user runs it: whole outputs, counts, and bad rows set aside."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml

from components.ingest.__main__ import ingest
from components.ingest.ids import Ids
from components.settings import Corpus
from cslm.importers import BadCorpus
from cslm.shards import UTTERANCE
from cslm.tables import DIALOGUE, TRANSLATION

ROOT = Path(__file__).parents[2]
Run = Callable[[dict[str, Any], str], subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the component on the given corpora in an empty folder; the result has stdout and stderr."""

    def run_it(corpora: dict[str, Any], key: str) -> subprocess.CompletedProcess[str]:
        settings = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
        (tmp_path / "params.yaml").write_text(yaml.safe_dump({**settings, "corpora": corpora}), "utf-8")
        environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
        environment |= {"PYTHONPATH": str(ROOT), "CSLM_HOME": str(tmp_path / "var"), "HOME": str(tmp_path)}
        command = [sys.executable, "-m", "components.ingest", "--corpus", key]
        return subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True)

    return run_it


def speak(path: Path, seconds: float = 0.5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(np.arange(round(seconds * 16_000)) * 0.2), 16_000)


def test_a_written_corpus_gives_its_tables_and_no_speech(tmp_path: Path) -> None:
    corpus = tmp_path / "written"
    corpus.mkdir()
    for language, sentence in (("en", "Good day.\n"), ("zh", "你好。\n")):
        (corpus / f"news.{language}").write_text(sentence, "utf-8")
    turns = [{"from": "human", "value": "One?"}, {"from": "gpt", "value": "Two."}]
    (corpus / "talk.jsonl").write_text(json.dumps({"conversations": turns, "language": "en"}) + "\n", "utf-8")
    intake = ingest("mine", Corpus(format="written", path=str(corpus)), tmp_path / "out")
    assert intake.summary() == "0 utterances (none), 1 dialogues, 2 translations, 0 rows refused"
    assert pq.read_table(tmp_path / "out/utterances").schema.names == UTTERANCE.names
    pairs = pq.read_table(tmp_path / "out/translations.parquet").to_pylist()
    assert {(row["id"], row["source"], row["target"]) for row in pairs} == {
        ("mine-news-1-en", "Good day.", "你好。"),
        ("mine-news-1-zh", "你好。", "Good day."),
    }
    (row,) = pq.read_table(tmp_path / "out/dialogues.parquet").to_pylist()
    assert (row["id"], row["question"], row["answer"]) == ("mine-talk.jsonl-1", "One?", "Two.")


def test_good_rows_are_written_and_bad_ones_listed(tmp_path: Path, run: Run) -> None:
    for name in ("a", "b", "c"):
        speak(tmp_path / f"mine/wav/{name}.wav")
    (tmp_path / "mine/wav/b.wav").write_bytes(b"junk")
    (tmp_path / "mine/all.tsv").write_text("a\tone\nb\ttwo\na\tagain\n../c\tthree\nc\tfour\nd\tfive\n", "utf-8")
    result = run({"mine": {"format": "tsv", "path": "mine", "language": "en"}}, "mine")
    assert result.returncode == 0, result.stderr
    assert "2 utterances (0.00 h en), 0 dialogues, 0 translations, 4 rows refused" in result.stderr
    out = tmp_path / "work/corpora/mine"
    rows = pq.read_table(out / "utterances").to_pylist()
    assert [(row["id"], row["text"], row["source"]) for row in rows] == [
        ("mine-a", "one", "mine"),
        ("mine-c", "four", "mine"),
    ]
    rejected = pq.read_table(out / "rejected.parquet").to_pylist()
    assert [(row["id"], row["file"].split(" ")[0]) for row in rejected] == [
        ("b", "all.tsv:2"),
        ("a", "all.tsv:3"),
        ("../c", "all.tsv:4"),
        ("d", "all.tsv:6"),
    ]
    metrics = json.loads((tmp_path / "metrics/ingest/mine.json").read_text("utf-8"))
    assert metrics["utterances"] == {"total": 2, "train": 2}
    assert metrics["rejected"] == 4


def test_half_a_character_costs_its_row(tmp_path: Path) -> None:
    """JSON may hold `\\ud83d` without the half that follows it, which no file can."""
    half, reason = "\ud83d", "half a character (\\ud83d), its other half is missing; write it whole"
    (tmp_path / "talks").mkdir()
    talks = [("One?", "Two."), ("One?", f"Two {half}."), ("One \U0001f600?", "Two.")]
    turns = [[{"from": "human", "value": q}, {"from": "gpt", "value": a}] for q, a in talks]
    lines = [json.dumps({"conversations": each, "language": "en"}) for each in turns]
    (tmp_path / "talks/talks.jsonl").write_text("\n".join(lines), "utf-8")
    ingest("talks", Corpus(format="written", path=str(tmp_path / "talks")), tmp_path / "out")
    assert pq.read_table(tmp_path / "out/dialogues.parquet")["id"].to_pylist() == [
        "talks-talks.jsonl-1",
        "talks-talks.jsonl-3",
    ]
    assert pq.read_table(tmp_path / "out/rejected.parquet").to_pylist() == [
        {"table": "dialogues", "id": "", "file": "talks.jsonl:2", "reason": reason}
    ]


def test_half_a_character_costs_its_utterance(tmp_path: Path) -> None:
    half = "\ud83d"
    speak(tmp_path / "cuts/a.wav")
    cuts = []
    for name, file, text, speaker in (
        ("good", "a.wav", "one", "anna"),
        (half, "a.wav", "one", "anna"),
        ("text", "a.wav", half, "anna"),
        ("speaker", "a.wav", "one", half),
        ("file", f"{half}.wav", "one", "anna"),
    ):
        source = {"type": "file", "channels": [0], "source": file}
        recording = {
            "id": "r",
            "sources": [source],
            "sampling_rate": 16000,
            "num_samples": 8000,
            "duration": 0.5,
        }
        said = {"id": "s", "recording_id": "r", "start": 0, "duration": 0.5, "text": text, "speaker": speaker}
        cut = {"id": name, "start": 0, "duration": 0.5, "channel": 0, "recording": recording, "type": "MonoCut"}
        cuts.append(json.dumps({**cut, "supervisions": [said]}))
    (tmp_path / "cuts/a_cuts.jsonl").write_text("\n".join(cuts), "utf-8")
    ingest("mine", Corpus(format="lhotse", path=str(tmp_path / "cuts"), language="en"), tmp_path / "out")
    assert pq.read_table(tmp_path / "out/utterances")["id"].to_pylist() == ["mine-good"]
    rejected = pq.read_table(tmp_path / "out/rejected.parquet").to_pylist()
    assert [(row["id"], row["file"].split(" ")[0]) for row in rejected] == [
        ("\\ud83d", "a_cuts.jsonl:2"),
        ("text", "a_cuts.jsonl:3"),
        ("speaker", "a_cuts.jsonl:4"),
        ("file", "a_cuts.jsonl:5"),
    ]
    assert ["half a character (\\ud83d)" in row["reason"] for row in rejected] == [True, True, True, False]


@pytest.mark.parametrize(
    ("corpora", "key", "complaint"),
    [
        (
            {"mine": {"format": "tsv", "path": "gone"}},
            "mine",
            "corpora.mine (format tsv): gone: no such folder",
        ),
        ({"mine": {"format": "tsv", "path": "."}}, "other", "no corpora.other; it has mine"),
    ],
)
def test_what_is_no_corpus_stops_with_one_line(
    corpora: dict[str, Any], key: str, complaint: str, tmp_path: Path, run: Run
) -> None:
    result = run(corpora, key)
    assert result.returncode == 1
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "work/corpora" / key).exists()


def table(path: Path, names: list[str], rows: list[str]) -> None:
    path.write_text("\n".join(["\t".join(names), *rows]) + "\n", "utf-8")


def test_a_limit_takes_the_texts_in_proportion(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    for number in range(8):
        speak(root / f"wav/u{number}.wav")
    table(
        root / "list.tsv", ["id", "text", "split"], [f"u{n}\tx\t{('train', 'test')[n % 2]}" for n in range(8)]
    )
    table(
        root / "dialogues.tsv",
        DIALOGUE.names,
        [f"d{n}\t{('train', 'test')[n % 2]}\ten\tq\tu{n}\ten\ta\t" for n in range(8)]
        + [f"t{n}\ttest\ten\tq\t\ten\ta\t" for n in range(3)],
    )
    table(root / "translations.tsv", TRANSLATION.names, [f"m{n}\ttrain\ten\ts\tzh\tt" for n in range(5)])
    out = tmp_path / "out"
    out.mkdir()
    ingest("mine", Corpus(format="tsv", path=str(root), language="en", limit=2), out)

    def ids(name: str) -> list[str]:
        return [str(value).removeprefix("mine-") for value in pq.read_table(out / name)["id"].to_pylist()]

    assert ids("utterances") == ["u0", "u1", "u2", "u3"]
    assert ids("dialogues.parquet") == ["d0", "d1", "d2", "d3"]
    assert ids("translations.parquet") == ["m0", "m1"]


def test_only_the_splits_that_are_named_are_taken_in(tmp_path: Path) -> None:
    """So that a corpus to train on brings no test set of its own beside the paper's."""
    root = tmp_path / "mine"
    for number in range(4):
        speak(root / f"wav/u{number}.wav")
    splits = ("train", "test", "dev", "unheard")
    table(root / "list.tsv", ["id", "text", "split"], [f"u{n}\tx\t{splits[n]}" for n in range(4)])
    table(root / "translations.tsv", TRANSLATION.names, [f"m{n}\t{splits[n]}\ten\ts\tzh\tt" for n in range(2)])
    corpus = Corpus(format="tsv", path=str(root), language="en", splits=["train"])
    out = tmp_path / "out"
    out.mkdir()
    intake = ingest("mine", corpus, out)
    assert pq.read_table(out / "utterances")["id"].to_pylist() == ["mine-u0"]
    assert pq.read_table(out / "translations.parquet")["split"].to_pylist() == ["train"]
    assert intake.metrics()["left_out"] == {"total": 3, "test": 2, "dev": 1}
    assert intake.metrics()["rejected"] == 1, "a split that nobody knows is refused, and not left out"
    assert "3 rows of other splits (dev, test) left out" in intake.summary()


def test_a_missing_shard_folder_leaves_no_output(tmp_path: Path) -> None:
    with pytest.raises(BadCorpus):
        ingest("mine", Corpus(format="shards", path=str(tmp_path)), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.parquet"))


def test_memory_stays_flat(tmp_path: Path) -> None:
    """4,000 rows of 16 kB of audio are 64 MB; peak memory grows by far less."""
    speak(tmp_path / "mine/wav/a.wav")
    lines = "".join(f"u{n}\tx\twav/a.wav\n" for n in range(4_000))
    (tmp_path / "mine/all.tsv").write_text("id\ttext\tfile\n" + lines, "utf-8")
    corpus = Corpus(format="tsv", path=str(tmp_path / "mine"), language="en", limit=300)
    ingest("mine", corpus, tmp_path / "few")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    intake = ingest("mine", corpus.model_copy(update={"limit": None}), tmp_path / "many")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert intake.metrics()["utterances"]["total"] == 4_000
    assert grown < 24_000, f"{grown} kB more for 4,000 rows than for 300"


def test_the_ids_of_a_corpus_take_no_memory_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSLM_HOME", str(tmp_path))
    process = psutil.Process()
    with Ids.scratch() as ids:
        before = process.memory_info().rss
        for number in range(200_000):
            ids.add(f"utterance-{number:09d}")
        grown = process.memory_info().rss - before
        assert "utterance-000123456" in ids
        assert "utterance-000200000" not in ids
    assert grown < 8e6, f"{grown / 200_000:.0f} bytes an id; a set takes 120"
    assert not [*tmp_path.iterdir()]
