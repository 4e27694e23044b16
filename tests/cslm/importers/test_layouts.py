"""Every layout of docs/corpora.md gives its utterances: id, text, language, speaker, split, audio."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cslm.audio import SAMPLE_RATE, decode, encode_flac, encode_opus
from cslm.importers import IMPORTERS, TEXTS, BadCorpus, Defaults, Found, Refused
from cslm.importers.intake import take_in
from cslm.shards import UTTERANCE
from cslm.tables import DIALOGUE

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


def test_aishell2(corpus: Path, make_audio: Any) -> None:
    """openslr has only its name; the layout is that of kaldi's egs/aishell2 (local/prepare_data.sh)."""
    make_audio("AISHELL-2/iOS/data/wav/C0001/IC0001W0001.wav")
    make_audio("AISHELL-2/iOS/test/wav/T0002/IT0002W0001.wav")
    write(corpus / "AISHELL-2/iOS/data/trans.txt", "IC0001W0001\t厨房用品\nIC0001W0002\t没有声音\n")
    write(corpus / "AISHELL-2/iOS/test/trans.txt", "IT0002W0001\t换一首歌\n")
    found = list(IMPORTERS["aishell2"](corpus, Defaults()))
    taken = [essence(take_in(each, source="test")) for each in found if isinstance(each, Found)]
    assert taken == [
        ("IC0001W0001", "厨房用品", "zh", "C0001", "train"),
        ("IT0002W0001", "换一首歌", "zh", "T0002", "test"),
    ]
    assert [each.id for each in found if isinstance(each, Refused)] == ["IC0001W0002"]


def test_aishell3_leaves_pinyin_out(corpus: Path, make_audio: Any) -> None:
    """openslr.org/93: words and pinyin take turns."""
    make_audio("train/wav/SSB0005/SSB00050001.wav", rate=44_100)
    make_audio("test/wav/SSB0139/SSB01390001.wav", rate=44_100)
    write(corpus / "train/content.txt", "SSB00050001.wav\t广 guang3 州 zhou1 女 nv3 大 da4\n")
    write(corpus / "test/content.txt", "SSB01390001.wav\t你 ni3 好 hao3\nSSB01390002.wav\t你 ni3 好\n")
    found = list(IMPORTERS["aishell3"](corpus, Defaults()))
    taken = [essence(take_in(each, source="test")) for each in found if isinstance(each, Found)]
    assert taken == [
        ("SSB01390001", "你好", "zh", "SSB0139", "test"),
        ("SSB00050001", "广州女大", "zh", "SSB0005", "train"),
    ]
    assert [each.reason for each in found if isinstance(each, Refused)] == ["a word has no pinyin"]


def test_mls_of_flac_and_of_opus(tmp_path: Path, make_audio: Any, corpus: Path) -> None:
    """openslr.org/94: mls_LANGUAGE or mls_LANGUAGE_opus, one transcript a split."""
    make_audio("mls_polish/dev/audio/6892/10349/6892_10349_000000.flac")
    make_audio("mls_polish/train/audio/98/1/98_1_000003.opus", format="OGG", subtype="OPUS")
    write(corpus / "mls_polish/dev/transcripts.txt", "6892_10349_000000\tdawno dawno temu\n")
    write(corpus / "mls_polish/train/transcripts.txt", "98_1_000003\tza górami\n")
    write(corpus / "mls_polish/metainfo.txt", " SPEAKER   |   GENDER\n")
    assert [essence(row) for row in rows("mls", corpus / "mls_polish")] == [
        ("6892_10349_000000", "dawno dawno temu", "pl", "6892", "dev"),
        ("98_1_000003", "za górami", "pl", "98", "train"),
    ]
    (corpus / "mls_polish").rename(corpus / "mine")
    with pytest.raises(BadCorpus, match=r"not called mls_LANGUAGE: set corpora\.\*\.language"):
        rows("mls", corpus / "mine")


def test_libritts_reads_what_is_normalised(corpus: Path, make_audio: Any) -> None:
    """openslr.org/60: beside each file are its texts, and all of a chapter's in one table."""
    make_audio("LibriTTS/dev-clean/84/121123/84_121123_000007_000001.wav", rate=24_000)
    line = "84_121123_000007_000001\tMr. Maximilian, 2.\tMister Maximilian, two."
    write(corpus / "LibriTTS/dev-clean/84/121123/84_121123.trans.tsv", f"{line}\n")
    assert [essence(row) for row in rows("libritts", corpus)] == [
        ("84_121123_000007_000001", "Mister Maximilian, two.", "en", "84", "dev")
    ]


def test_vctk_takes_one_microphone(corpus: Path, make_audio: Any) -> None:
    """doi.org/10.7488/ds/2645: two microphones; p280 has one, p315 has no texts."""
    for name in ("p225/p225_001_mic1", "p225/p225_001_mic2", "p280/p280_001_mic1", "p315/p315_001_mic1"):
        make_audio(f"wav48_silence_trimmed/{name}.flac", rate=48_000)
    for speaker in ("p225", "p280"):
        write(corpus / f"txt/{speaker}/{speaker}_001.txt", "Please call Stella.\n")
    found = list(IMPORTERS["vctk"](corpus, Defaults(split="test")))
    assert [each.file.rsplit("_", 1)[1] for each in found] == ["mic2.flac", "mic1.flac"]
    assert [essence(row) for row in rows("vctk", corpus)] == [
        ("p225_001", "Please call Stella.", "en", "p225", "train"),
        ("p280_001", "Please call Stella.", "en", "p280", "train"),
    ]


def test_sentence_pairs_of_wmt_in_both_directions(corpus: Path) -> None:
    """statmt.org/wmt17/translation-task.html: training/news-commentary-v12.zh-en.{zh,en}."""
    name = "training/news-commentary-v12.zh-en"
    write(corpus / f"{name}.en", "1929 or 1989?\n\nPARIS\n")
    write(corpus / f"{name}.zh", "1929年还是1989年?\n空\n巴黎\n")
    write(corpus / f"{name}.ids", "1\n2\n3\n")  # as the UN's corpus has them
    write(corpus / "README.txt", "no sentences\n")
    assert list(IMPORTERS["written"](corpus, Defaults())) == []
    found = list(TEXTS["written"]["translations"](corpus, Defaults(split="dev"), "wmt-"))
    pairs = [tuple(row.values()) for row in found if isinstance(row, dict)]
    first = "wmt-training-news-commentary-v12.zh-en-1"
    assert pairs[:2] == [
        (f"{first}-en", "dev", "en", "1929 or 1989?", "zh", "1929年还是1989年?"),
        (f"{first}-zh", "dev", "zh", "1929年还是1989年?", "en", "1929 or 1989?"),
    ]
    assert [pair[3] for pair in pairs[2:]] == ["PARIS", "巴黎"]
    assert [row.file for row in found if isinstance(row, Refused)] == [f"{name}:2"]
    write(corpus / f"{name}.en", "1929 or 1989?\n")
    with pytest.raises(BadCorpus, match=r"zh-en\.en ends before line 2"):
        list(TEXTS["written"]["translations"](corpus, Defaults(), ""))


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_conversations_of_infinity_instruct(kind: str, corpus: Path) -> None:
    """Its columns on huggingface.co/datasets/BAAI/Infinity-Instruct; the first question and answer are read."""
    talks = [
        [("human", "你好"), ("gpt", "您好！"), ("human", "再见"), ("gpt", "再见！")],
        [("system", "Be brief."), ("human", "One?"), ("gpt", "Two,\r\n\tand three.\r\n")],
        [("human", "Nobody answers")],
    ]
    records = [
        {"id": n, "conversations": [{"from": who, "value": said} for who, said in talk], "langdetect": language}
        for n, (talk, language) in enumerate(zip(talks, ["zh-cn", "en", "en"], strict=True))
    ]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records), corpus / "train-00000-of-00001.parquet")
    else:
        lines = [json.dumps(record) for record in records]
        write(corpus / "train-00000-of-00001.jsonl", "\n".join([*lines, "{broken", '"text"', ""]))
    found = list(TEXTS["written"]["dialogues"](corpus, Defaults(), "infinity-"))
    dialogues = [row for row in found if isinstance(row, dict)]
    assert [(row["question_language"], row["question"], row["answer"]) for row in dialogues] == [
        ("zh", "你好", "您好！"),
        ("en", "One?", "Two,\n\tand three."),
    ]
    assert {row["question_speech"] + row["answer_speech"] for row in dialogues} == {""}
    assert list(dialogues[0]) == DIALOGUE.names
    reasons = [row.reason for row in found if isinstance(row, Refused)]
    assert reasons[0] == "no question of a human with an answer of gpt"
    assert len(reasons) == (1 if kind == "parquet" else 3)


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


def test_gigaspeech_by_lhotse_has_marks_and_no_noise(corpus: Path, make_audio: Any) -> None:
    """Segments as `text_tn` of GigaSpeech.json has them (github.com/SpeechColab/GigaSpeech), cut by lhotse."""
    from lhotse import CutSet, Recording, RecordingSet, SupervisionSegment, SupervisionSet

    path = make_audio("audio/podcast/P0000/POD0000000001.opus", seconds=4, format="OGG", subtype="OPUS")
    recording = Recording.from_file(path, recording_id="POD0000000001")
    said = ["AS THEY'RE LEAVING <COMMA> CAN KASH PULL ZAHRA ASIDE <QUESTIONMARK>", "<MUSIC>"]
    segments = [
        SupervisionSegment(f"POD0000000001_S000000{n}", recording.id, 2.0 * n, 1.5, 0, text, "English", "N/A")
        for n, text in enumerate(said)
    ]
    whole = CutSet.from_manifests(
        RecordingSet.from_recordings([recording]), SupervisionSet.from_segments(segments)
    )
    whole.trim_to_supervisions(keep_overlapping=False).to_file(corpus / "gigaspeech_cuts_DEV.jsonl.gz")
    speech, music = IMPORTERS["lhotse"](corpus, Defaults())
    assert isinstance(speech, Found) and (speech.language, speech.split) == ("en", "dev")
    assert speech.text == "AS THEY'RE LEAVING, CAN KASH PULL ZAHRA ASIDE?"
    assert take_in(speech, source="test")["duration_s"] == pytest.approx(1.5)
    assert isinstance(music, Refused) and music.reason == "no speech in it: <MUSIC>"


@pytest.mark.parametrize("given", ["data/corpus", "/mnt/data/corpus"])
def test_what_a_recipe_of_lhotse_was_given_does_not_bind_the_corpus_to_it(
    given: str, corpus: Path, make_audio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs read a corpus in a workspace of their own; recipes write the path that they were given."""
    from lhotse import CutSet
    from lhotse.recipes import prepare_wenet_speech

    make_audio("audio/dev/B00000/DEV_T0000000001.opus", seconds=4, format="OGG", subtype="OPUS")
    segment = {
        "sid": "DEV_T0000000001_S00000",
        "begin_time": 0.5,
        "end_time": 2.0,
        "text": "你好",
        "subsets": ["DEV"],
    }
    audio = {"aid": "DEV_T0000000001", "duration": 4.0, "path": "audio/dev/B00000/DEV_T0000000001.opus"}
    write(corpus / "WenetSpeech.json", json.dumps({"audios": [audio | {"segments": [segment]}]}))
    monkeypatch.chdir(corpus)
    made = prepare_wenet_speech(".", dataset_parts=["DEV"])["DEV"]
    recordings = made["recordings"].with_path_prefix(given)
    cuts = CutSet.from_manifests(recordings, made["supervisions"])
    cuts.trim_to_supervisions(keep_overlapping=False).to_file(corpus / "wenetspeech_cuts_DEV.jsonl.gz")
    [row] = rows("lhotse", corpus)
    assert (row["text"], row["language"], row["split"]) == ("你好", "zh", "dev")
    assert row["duration_s"] == pytest.approx(1.5)


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
