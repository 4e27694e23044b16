"""Every layout of docs/corpora.md gives its utterances: id, text, language, speaker, split, audio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cslm.audio import SAMPLE_RATE, decode, encode_flac, encode_opus
from cslm.importers import IMPORTERS, BadCorpus, Defaults, Found
from cslm.importers.intake import take_in
from cslm.shards import UTTERANCE

REAL = Path(__file__).parents[4] / "shared" / "data"
needs_recordings = pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/data beside the checkout")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def rows(kind: str, root: Path, language: str | None = None) -> list[dict[str, Any]]:
    """What the importer finds, taken in; a refusal is an error here."""
    taken = []
    for found in IMPORTERS[kind](root, Defaults(language)):
        assert isinstance(found, Found), found
        taken.append(take_in(found, source="test"))
    return taken


def essence(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(row[key] for key in ("id", "text", "language", "speaker", "split"))


def test_tsv_of_id_and_text_with_bom_and_crlf(corpus: Path, make_audio: Any) -> None:
    make_audio("wav/a.wav", rate=44_100, channels=2)
    make_audio("wav/b.flac", rate=8_000)
    write(corpus / "all.tsv", '\ufeffa\tHello there.\r\n\r\nb\t"Quoted" words\r\n')
    taken = rows("tsv", corpus, "en")
    assert [essence(row) for row in taken] == [
        ("a", "Hello there.", "en", "unknown", "train"),
        ("b", '"Quoted" words', "en", "unknown", "train"),
    ]
    for row in taken:
        assert len(decode(row["audio"])) == pytest.approx(SAMPLE_RATE, abs=2)
        assert row["duration_s"] == pytest.approx(1.0, abs=0.001)


def test_tsv_with_named_columns_in_any_order(corpus: Path, make_audio: Any) -> None:
    make_audio("deep/er/x.wav")
    header = "text\tspeaker\tsplit\tlanguage\tfile\tid\n"
    write(corpus / "list.tsv", header + "你好\ts1\tvalidation\tzh-CN\tdeep/er/x.wav\tx1\n")
    assert essence(rows("tsv", corpus)[0]) == ("x1", "你好", "zh", "s1", "dev")


def test_tsv_of_three_columns_has_the_speaker_in_the_middle(corpus: Path, make_audio: Any) -> None:
    make_audio("wav/a.wav")
    write(corpus / "test.tsv", "a\tanna\tone\n")
    assert essence(rows("tsv", corpus, "en")[0]) == ("a", "one", "en", "anna", "test")


def test_tsv_without_a_language_says_which_key_to_set(corpus: Path) -> None:
    write(corpus / "all.tsv", "a\tone\n")
    with pytest.raises(BadCorpus, match=r"corpora\.\*\.language"):
        rows("tsv", corpus)


def test_utf16_manifest_is_named(corpus: Path) -> None:
    (corpus / "all.tsv").write_text("a\tone\n", "utf-16")
    with pytest.raises(BadCorpus, match="save it as UTF-8"):
        rows("tsv", corpus, "en")


def test_librispeech(corpus: Path, make_audio: Any) -> None:
    make_audio("dev-clean/84/121/84-121-0000.flac")
    make_audio("train-clean-5/19/198/19-198-0000.flac")
    write(corpus / "dev-clean/84/121/84-121.trans.txt", "84-121-0000 GO DO YOU HEAR\n")
    write(corpus / "train-clean-5/19/198/19-198.trans.txt", "19-198-0000 NORTHANGER ABBEY\n")
    assert [essence(row) for row in rows("librispeech", corpus)] == [
        ("84-121-0000", "GO DO YOU HEAR", "en", "84", "dev"),
        ("19-198-0000", "NORTHANGER ABBEY", "en", "19", "train"),
    ]


def test_aishell(corpus: Path, make_audio: Any) -> None:
    make_audio("wav/test/S0764/BAC009S0764W0121.wav")
    write(corpus / "transcript/aishell_transcript_v0.8.txt", "BAC009S0764W0121 甚至 出现 交易 几乎 停滞\n")
    assert [essence(row) for row in rows("aishell", corpus)] == [
        ("BAC009S0764W0121", "甚至出现交易几乎停滞", "zh", "S0764", "test")
    ]


def test_common_voice_reads_the_splits_and_not_validated(corpus: Path, make_audio: Any) -> None:
    make_audio("clips/c1.mp3", rate=48_000, format="MP3")
    row = "abc\tc1.mp3\tShe said so.\tzh-CN\n"
    write(corpus / "dev.tsv", "client_id\tpath\tsentence\tlocale\n" + row)
    write(corpus / "validated.tsv", "client_id\tpath\tsentence\tlocale\n" + row)
    assert [essence(row) for row in rows("common_voice", corpus)] == [
        ("c1", "She said so.", "zh", "abc", "dev")
    ]


def test_common_voice_of_validated_alone(corpus: Path, make_audio: Any) -> None:
    make_audio("clips/c1.mp3", rate=48_000, format="MP3")
    write(corpus / "validated.tsv", "path\tsentence\nc1.mp3\tShe said so.\n")
    assert [essence(row)[4] for row in rows("common_voice", corpus, "en")] == ["train"]


def test_lhotse_cuts_take_their_part_and_channel(corpus: Path, make_audio: Any) -> None:
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

    path = make_audio("audio/long.wav", seconds=3, rate=16_000, channels=2)
    recording = Recording.from_file(path, recording_id="long")
    said = SupervisionSegment("s", "long", 0, 1, 1, "hello", "English", "anna")
    cut = MonoCut("long-1", start=1.0, duration=1.5, channel=1, supervisions=[said], recording=recording)
    CutSet.from_cuts([cut]).to_file(corpus / "demo_cuts_dev.jsonl.gz")
    taken = rows("lhotse", corpus)
    assert [essence(row) for row in taken] == [("long-1", "hello", "en", "anna", "dev")]
    assert taken[0]["duration_s"] == pytest.approx(1.5)


def test_huggingface_dataset_dict(corpus: Path, make_audio: Any) -> None:
    import datasets

    audio = {"bytes": make_audio("a.wav", rate=22_050).read_bytes(), "path": "a.wav"}
    table = {"audio": [audio], "sentence": ["one two"], "client_id": ["c"], "locale": ["en"]}
    # from_dict would want torchcodec to encode; an Arrow table with encoded bytes is what hubs carry anyway
    saved = datasets.Dataset(pa.table(table)).cast_column("audio", datasets.Audio())
    datasets.DatasetDict({"validation": saved}).save_to_disk(str(corpus / "saved"))
    assert [essence(row) for row in rows("huggingface", corpus / "saved")] == [
        ("validation-0", "one two", "en", "c", "dev")
    ]


def test_shards_pass_compact_speech_through_and_convert_the_rest(corpus: Path, make_audio: Any) -> None:
    tone = decode(make_audio("a.wav"))
    kept, converted = encode_opus(tone), make_audio("b.wav", rate=24_000).read_bytes()
    facts = {"text": "x", "language": "en", "speaker": "s", "source": "mine", "split": "test"}
    table = [
        {"id": name, "audio": audio, "duration_s": 1.0, "sample_rate": 16_000, **facts}
        for name, audio in (("opus", kept), ("flac", encode_flac(tone)), ("wav", converted))
    ]
    (corpus / "speech").mkdir()
    pq.write_table(pa.Table.from_pylist(table, UTTERANCE), corpus / "speech" / "shard-00000.parquet")
    taken = rows("shards", corpus)
    assert taken[0]["audio"] == kept
    assert taken[0]["source"] == "mine"
    assert taken[1]["audio"] == table[1]["audio"]
    assert len(decode(taken[2]["audio"])) == SAMPLE_RATE


@pytest.mark.parametrize("kind", sorted(IMPORTERS))
def test_an_empty_folder_is_no_corpus(kind: str, corpus: Path) -> None:
    with pytest.raises(BadCorpus, match=str(corpus)):
        rows(kind, corpus, "en")


@needs_recordings
def test_belle_eval_s2s() -> None:
    taken = rows("tsv", REAL / "belle_eval_s2s", "zh")
    assert len(taken) == 125
    assert essence(taken[0]) == ("0", "中国有多少个省？", "zh", "unknown", "test")


@needs_recordings
def test_fsdd() -> None:
    taken = rows("tsv", REAL / "fsdd", "en")
    assert len(taken) == 300
    assert {row["speaker"] for row in taken} == {"jackson", "nicolas", "theo"}


@needs_recordings
def test_every_real_recording_is_taken_in(corpus: Path) -> None:
    files = sorted(path for path in (REAL / "real").iterdir())
    (corpus / "wav").mkdir()
    for path in files:
        (corpus / "wav" / path.name).write_bytes(path.read_bytes())
    write(corpus / "all.tsv", "file\ttext\n" + "".join(f"wav/{path.name}\t\n" for path in files))
    taken = rows("tsv", corpus, "en")
    assert len(taken) == len(files) == 8
    durations = {row["id"]: row["duration_s"] for row in taken}
    assert durations["2412-153948-0000"] == pytest.approx(186_560 / 16_000)  # as `file` tells its length
    assert durations["stereo"] == pytest.approx(1.0, abs=0.01)
