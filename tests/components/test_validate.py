"""The validate stage: what it accepts, sets aside, stops at, and shows."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from components.validate.__main__ import main
from cslm.audio import SAMPLE_RATE, encode_flac
from cslm.shards import UTTERANCE, ShardWriter
from cslm.tables import DIALOGUE, ORIGIN, REJECTED, TRANSLATION

ROOT = Path(__file__).parents[2]
WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
Check = Callable[..., None]


def utterance(number: int, seconds: float = 1.0, level: float = 0.3, **changes: Any) -> dict[str, Any]:
    """A tone of its own pitch, with a text of its own."""
    tone = level * np.sin(np.arange(round(seconds * SAMPLE_RATE)) * (0.1 + number / 1000))
    row = {"id": f"u{number}", "audio": encode_flac(tone.astype(np.float32)), "duration_s": seconds}
    row |= {"sample_rate": SAMPLE_RATE, "text": f"it is {WORDS[number % 13]} of {number}", "language": "en"}
    return {**row, "speaker": "anna", "source": "mine", "split": "train", **changes}


def dialogue(number: int, **changes: str) -> dict[str, str]:
    row = dict.fromkeys(DIALOGUE.names, "en") | {"id": f"d{number}", "split": "train"}
    row |= {"question": f"this is question {number}", "answer": "yes"}
    row |= {"question_speech": "", "answer_speech": ""}
    return row | changes


def translation(number: int, **changes: str) -> dict[str, str]:
    row = {"id": f"t{number}", "split": "train", "source_language": "en", "source": f"number {number}"}
    return {**row, "target_language": "zh", "target": "数字", **changes}


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow database for all tests here: making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def check(tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Runs the stage on the given rows, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CSLM_HOME", str(tmp_path / "var"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    settings = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))

    def run(
        utterances: Iterable[dict[str, Any]],
        dialogues: Iterable[dict[str, str]] = (),
        translations: Iterable[dict[str, str]] = (),
        rejected: Iterable[dict[str, str]] = (),
        languages: Iterable[str] = ("en",),
        corpora: Iterable[str] = ("mine",),
        **limits: float,
    ) -> None:
        changed: dict[str, Any] = {"languages": list(languages)}
        changed["validate"] = {**settings["validate"], **limits}
        changed["corpora"] = {name: {"format": "shards", "path": "."} for name in corpora}
        Path("params.yaml").write_text(yaml.safe_dump({**settings, **changed}), "utf-8")
        folder = Path("work/corpora/mine")
        origins = []
        with ShardWriter(folder / "utterances", UTTERANCE) as writer:
            for number, row in enumerate(utterances):
                writer.write(row)
                origins.append({"id": row["id"], "file": f"wav/{number}.wav"})
        tables = (
            ("dialogues", DIALOGUE, dialogues),
            ("translations", TRANSLATION, translations),
            ("origins", ORIGIN, origins),
        )
        for name, schema, rows in (*tables, ("rejected", REJECTED, rejected)):
            pq.write_table(pa.Table.from_pylist(list(rows), schema), folder / f"{name}.parquet")
        main()

    return run


def ids(path: str) -> list[str]:
    return [str(name) for name in pq.read_table(path)["id"].to_pylist()]


def reasons(table: str) -> dict[str, str]:
    rows = pq.read_table(f"work/quarantine/{table}").to_pylist()
    return {row["id"]: row["reason"] for row in rows}


def test_a_good_corpus_is_accepted_whole_and_documented(check: Check, tmp_path: Path) -> None:
    check([utterance(n) for n in range(30)], [dialogue(n, question_speech=f"u{n}") for n in range(5)])
    assert ids("work/accepted/utterances") == [f"u{n}" for n in range(30)]
    assert ids("work/accepted/dialogues.parquet") == [f"d{n}" for n in range(5)]
    assert ids("work/accepted/translations.parquet") == []
    assert ids("work/quarantine/utterances") == []
    metrics = json.loads(Path("metrics/validate.json").read_text("utf-8"))
    assert metrics["accepted"] == {"utterances": 30, "dialogues": 5, "translations": 0}
    assert metrics["failed_expectations"] == 0
    artifacts = mlflow.MlflowClient().list_artifacts(metrics["mlflow_run_id"], "validation")
    assert "validation/index.html" in [artifact.path for artifact in artifacts]
    assert json.loads(Path("report/validation/statistics.json").read_text("utf-8"))["sample"]
    assert not Path("var/reference").exists(), "accepted only when the run has reached its end"
    counts = json.loads(Path("metrics/counts.json").read_text("utf-8"))
    assert counts["texts"] == {"dialogues": 5, "translations": 0}
    speech = counts["speech"]["mine.en"]
    assert (speech["hours"], speech["speakers"]) == (pytest.approx(30 / 3600, abs=1e-6), 1)
    assert speech["duration_s"] == {"1": 30}
    assert speech["level_db"] == {"-14": 30}, "of a sine of 0.3, 20 log10(0.3 / sqrt 2) is -13.5 dB"
    assert sum(speech["characters_per_second"].values()) == 30
    pages = list(Path("report/validation").rglob("*.html"))
    assert len(pages) > 6
    for page in pages:  # links for readers are fine, nothing may be fetched
        assert not re.search(r"<(script|link|img)[^>]+https?://|url\(['\"]?https?://", page.read_text("utf-8"))
    assert not list((tmp_path / "home").rglob("*great*"))


def test_old_corpora_stay_in_the_data_as_the_replay(check: Check) -> None:
    check([utterance(n, source="old") for n in range(30)], [dialogue(1)])
    Path("work/corpora/mine").rename("work/corpora/old")
    new = [utterance(n, source="new") for n in range(30, 34)]
    check(new, [dialogue(2)], corpora=("old", "mine"))
    assert sorted(ids("work/accepted/utterances")) == sorted(f"u{n}" for n in range(34))
    assert sorted(ids("work/accepted/dialogues.parquet")) == ["d1", "d2"]
    counts = json.loads(Path("metrics/counts.json").read_text("utf-8"))
    assert counts["speech"].keys() == {"old.en", "new.en"}


def test_what_everybody_says_is_no_leak(check: Check) -> None:
    """One held-out "yeah" would take thousands of training rows from thousands of hours."""
    said = [utterance(31, text="Yeah.", seconds=0.8), utterance(32, text="yeah", seconds=0.8, split="test")]
    check([*(utterance(n) for n in range(30)), *said], max_quarantined=0.0)
    assert reasons("utterances") == {}
    metrics = json.loads(Path("metrics/validate.json").read_text("utf-8"))
    assert metrics["heldout_not_looked_for"]["utterances"] == 1


def test_bad_rows_go_to_quarantine_with_a_reason(check: Check) -> None:
    good = [utterance(n) for n in range(20)]
    good.append(utterance(19, id="zh", text="你好", language="zh", seconds=0.9))
    held = [utterance(20, split="test"), utterance(21, split="heldout_voice", speaker="vera")]
    bad = [
        utterance(30, level=0.0),
        utterance(31, text="你好"),
        utterance(32, text=""),
        utterance(33, audio=b"junk"),
        utterance(34, text=held[0]["text"].upper() + "!"),
        utterance(35, speaker="vera"),
        utterance(36, audio=good[0]["audio"]),
        utterance(37, audio=held[0]["audio"]),
        utterance(38, id="u3"),
        utterance(39, duration_s=float("nan")),
    ]
    rejected = {"table": "utterances", "id": "x", "file": "all.tsv:9 (x.wav)", "reason": "no such file"}
    check(
        [*good, *bad, *held],
        [
            dialogue(0),
            dialogue(1, question_speech="u20"),
            dialogue(2, answer="是"),
            dialogue(3, split="dev"),
            dialogue(4, question="This is question 3?"),
        ],
        [
            translation(0),
            translation(1, source=""),
            translation(2, target="no"),
            translation(3, source_language="fr"),
        ],
        [rejected],
        languages=["en", "zh"],
        max_quarantined=0.9,
    )
    assert ids("work/accepted/utterances") == [row["id"] for row in [*good, *held]]
    told = reasons("utterances")
    assert "not readable as audio" in told.pop("u33")
    assert told == {
        "u30": "silent: level -120 dB; at least -50 dB is needed",
        "u31": "text is not in the script of 'en': only 0% of its words are; "
        "speech rate 2.0 characters/s; 4 to 30 is plausible for en",
        "u32": "empty text: no letter or digit in it; "
        "speech rate 0.0 characters/s; 4 to 30 is plausible for en",
        "u34": "leak: its text is also in test ('u20'), which training must not see",
        "u35": "leak: its speaker 'vera' is in heldout_voice",
        "u36": "the same audio as utterance 'u0'",
        "u37": "the same audio as utterance 'u20'",
        "u3": "id 'u3' is there twice; the first row is kept",
        "u39": "the audio lasts 1.00 s, but its row says nan s: truncated?",
    }
    assert ids("work/accepted/dialogues.parquet") == ["d0", "d3"]
    assert reasons("dialogues.parquet") == {
        "d1": "leak: it is of train, but its question_speech 'u20' is of test",
        "d2": "answer is not in the script of 'en': only 0% of its words are",
        "d4": "leak: its text is also in dev ('d3'), which training must not see",
    }
    assert reasons("translations.parquet") == {
        "t1": "empty source: no letter or digit in it",
        "t2": "target is not in the script of 'zh': only 0% of its words are",
        "t3": "language 'fr' is not one of params.yaml's languages (en, zh)",
    }
    assert pq.read_table("work/quarantine/rejected.parquet").to_pylist() == [
        {**rejected, "file": "mine/all.tsv:9 (x.wav)"}
    ]
    with Path("report/validation/refused.tsv").open(encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file, delimiter="\t"))
    assert len(listed) == 1 + 10 + 3 + 3
    assert listed[0] == {**rejected, "file": "mine/all.tsv:9 (x.wav)"}
    silent = next(row for row in listed if row["id"] == "u30")
    assert silent == {
        "table": "utterances",
        "id": "u30",
        "file": "mine/wav/21.wav",
        "reason": "silent: level -120 dB; at least -50 dB is needed",
    }
    assert {row["file"] for row in listed if row["table"] == "dialogues"} == {"mine/dialogues.tsv"}
    assert 'href="refused.tsv">17 rows were refused' in Path("report/validation/index.html").read_text("utf-8")


def test_what_is_written_has_lines_and_what_is_spoken_has_none(check: Check) -> None:
    check(
        [*(utterance(n) for n in range(9)), utterance(30, text="three\nof 30")],
        [dialogue(0, answer="Two:\n\n\tone, two."), dialogue(1, answer="Two:\none, two.", answer_speech="u1")],
        max_quarantined=0.5,
    )
    assert ids("work/accepted/dialogues.parquet") == ["d0"]
    assert reasons("dialogues.parquet") == {"d1": "control characters in the answer: U+000A"}
    assert reasons("utterances") == {"u30": "control characters in the text: U+000A"}


def test_too_many_refused_rows_stop_the_run(check: Check) -> None:
    with pytest.raises(SystemExit) as stopped:
        check([utterance(n, seconds=0.1 if n < 3 else 1.0, text="hi") for n in range(10)], max_quarantined=0.2)
    told = str(stopped.value)
    assert "utterances_delivered: expect_column_values_to_be_between(column=duration_s" in told
    assert "3 of 10 rows fail, 20.0% may (for example" in told
    assert "report/validation/refused.tsv and report/validation/index.html" in told
    assert Path("report/validation/index.html").is_file()
    assert len(reasons("utterances")) == 10  # "hi" is too little for a second of speech
    assert not Path("work/accepted").exists()
    assert not Path("metrics/validate.json").exists()


def test_rows_that_the_importer_refused_count_too(check: Check) -> None:
    rejected = [
        {"table": "utterances", "id": f"{n}", "file": f"{n}.wav", "reason": "no samples"} for n in range(5)
    ]
    with pytest.raises(SystemExit, match=r"refused: .*utterances: 0.3333"):
        check([utterance(n) for n in range(10)], rejected=rejected)


def test_no_data_or_a_language_without_data_stops_the_run(check: Check) -> None:
    with pytest.raises(SystemExit, match="no utterances remain after validation"):
        check([])
    with pytest.raises(SystemExit, match=r"remaining: .*column=utterances, min_value=1.*zh: 0"):
        check([utterance(n) for n in range(10)], languages=["en", "zh"])


def test_drift_stops_the_run_and_says_how_to_go_on(check: Check) -> None:
    check([utterance(n, text=f"abcdefgh {n}") for n in range(60)])
    Path("var/reference").mkdir()  # as a run does at its end
    shutil.copy("report/validation/statistics.json", "var/reference/validation.json")
    check([utterance(n, text=f"abcdefgh {n}") for n in range(60)])
    with pytest.raises(SystemExit, match=r"(?s)drift: .*raise validate.max_drift, or remove .*validation.json"):
        check([utterance(n, seconds=1.3, text=f"abcdefgh {n}") for n in range(60)])


@pytest.mark.parametrize(("split", "told"), [("train", True), ("dev", True), ("test", False)])
def test_a_corpus_without_a_test_split_is_told_before_it_is_trained_on(
    check: Check, capsys: pytest.CaptureFixture[str], split: str, told: bool
) -> None:
    check([utterance(n) for n in range(5)], [dialogue(1, split=split)])
    assert ("note: no row has the split test" in capsys.readouterr().out) is told


def test_a_table_of_another_schema_is_named(check: Check) -> None:
    check([utterance(n) for n in range(10)])
    pq.write_table(pa.table({"id": ["a"]}), "work/corpora/mine/dialogues.parquet")
    with pytest.raises(SystemExit, match=r"dialogues.parquet: its schema differs in .*answer_speech"):
        main()
