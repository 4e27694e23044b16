"""One bad row never costs another: it is refused with file and reason, and the rest goes on."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from cslm.audio import BadAudio
from cslm.importers import IMPORTERS, Defaults, Found, Refused
from cslm.importers.found import BadCorpus, Segment, split_named
from cslm.importers.intake import BadRow, take_in
from cslm.importers.texts import read_texts
from cslm.shards import UTTERANCE
from cslm.tables import DIALOGUE


def refusal(found: Found | Refused) -> str:
    """Why a row is not taken in; empty if it is."""
    if isinstance(found, Refused):
        return found.reason
    try:
        take_in(found, source="test")
    except (BadAudio, BadRow, OSError) as error:
        return str(error)
    return ""


def refusals(corpus: Path, manifest: str) -> dict[str, str]:
    """Reason by id for the rows of a TSV corpus whose last row, `good`, must always be taken in."""
    (corpus / "all.tsv").write_text("id\ttext\tfile\n" + manifest + "good\tfine\twav/good.wav\n", "utf-8")
    reasons = {found.id: refusal(found) for found in IMPORTERS["tsv"](corpus, Defaults("en"))}
    assert reasons.pop("good") == ""
    return reasons


@pytest.fixture(autouse=True)
def good(make_audio: Any) -> Path:
    path = make_audio("wav/good.wav")
    assert isinstance(path, Path)
    return path


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "opus", "mp3", "sph"])
def test_truncated_audio(kind: str, corpus: Path, make_audio: Any) -> None:
    options = {
        "opus": {"format": "OGG", "subtype": "OPUS"},
        "ogg": {"format": "OGG", "subtype": "VORBIS"},
        "sph": {"format": "NIST", "subtype": "PCM_16"},
        "mp3": {"format": "MP3"},
    }.get(kind, {})
    whole = make_audio(f"wav/whole.{kind}", seconds=4, **options)
    (corpus / f"wav/cut.{kind}").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    reasons = refusals(corpus, f"whole\tx\twav/whole.{kind}\ncut\tx\twav/cut.{kind}\n")
    assert reasons["whole"] == ""
    assert "truncated" in reasons["cut"] or "not readable" in reasons["cut"]


def test_unreadable_empty_and_sampleless_audio(corpus: Path) -> None:
    (corpus / "wav/noise.wav").write_bytes(b"no audio at all" * 100)
    (corpus / "wav/empty.wav").write_bytes(b"")
    soundfile.write(corpus / "wav/none.wav", np.zeros(0), 16_000)
    manifest = "".join(f"{name}\tx\twav/{name}.wav\n" for name in ("noise", "empty", "none"))
    reasons = refusals(corpus, manifest)
    assert "not readable as audio" in reasons["noise"]
    assert "not readable as audio" in reasons["empty"]
    assert reasons["none"] == "no samples"


def test_a_name_does_not_tell_what_a_file_holds(corpus: Path, make_audio: Any) -> None:
    (corpus / "wav/noise.raw").write_bytes(b"no audio at all" * 100)
    (corpus / "wav/speech.raw").write_bytes(make_audio("wav/any.wav").read_bytes())
    reasons = refusals(corpus, "noise\tx\twav/noise.raw\nspeech\tx\twav/speech.raw\n")
    assert "not readable as audio" in reasons["noise"]
    assert reasons["speech"] == ""


def test_a_segment_begins_somewhere(good: Path) -> None:
    for start in (float("nan"), float("inf"), -1.0):
        found = Found("a", "cuts:1", Segment(good, start, 0.2, 0), "x", "en", "s", "train")
        assert "begins at" in refusal(found)


@pytest.mark.parametrize("name", ["../outside.arrow", "/etc/passwd", "link.arrow"])
def test_a_saved_dataset_opens_no_file_elsewhere(name: str, corpus: Path, tmp_path: Path) -> None:
    import datasets

    saved = corpus / "saved"
    datasets.Dataset(pa.table({"text": ["x"]})).save_to_disk(str(saved))
    (corpus / "outside.arrow").write_bytes(next(saved.glob("*.arrow")).read_bytes())
    (saved / "link.arrow").symlink_to(corpus / "outside.arrow")
    state = json.loads((saved / "state.json").read_text())
    (saved / "state.json").write_text(json.dumps(state | {"_data_files": [{"filename": name}]}))
    with pytest.raises(BadCorpus, match="refused"):
        list(IMPORTERS["huggingface"](saved, Defaults("en")))


@pytest.mark.parametrize("name", ["../elsewhere", "link"])
def test_a_saved_dataset_has_no_split_elsewhere(name: str, corpus: Path) -> None:
    import datasets

    part = datasets.Dataset(pa.table({"text": ["x"]}))
    datasets.DatasetDict({"train": part}).save_to_disk(str(corpus / "saved"))
    part.save_to_disk(str(corpus / "elsewhere"))
    (corpus / "saved" / "link").symlink_to(corpus / "elsewhere")
    (corpus / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
    with pytest.raises(BadCorpus, match=r"a split that it names cannot be used: .*refused"):
        list(IMPORTERS["huggingface"](corpus / "saved", Defaults("en")))


def test_nan_and_infinite_samples(corpus: Path) -> None:
    samples = np.zeros(1600)
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        samples[7] = value
        soundfile.write(corpus / f"wav/{name}.wav", samples, 16_000, subtype="FLOAT")
    reasons = refusals(corpus, "nan\tx\twav/nan.wav\ninf\tx\twav/inf.wav\n")
    assert set(reasons.values()) == {"NaN or infinite samples"}


def test_eight_channels_and_three_hours(corpus: Path, make_audio: Any) -> None:
    make_audio("wav/eight.wav", channels=8)
    with soundfile.SoundFile(corpus / "wav/long.flac", "w", 8_000, 1) as file:
        for _ in range(180):
            file.write(np.zeros(60 * 8_000, np.int16))
    reasons = refusals(corpus, "eight\tx\twav/eight.wav\nlong\tx\twav/long.flac\n")
    assert reasons["eight"] == "8 channels; mono or stereo is allowed"
    assert reasons["long"] == "10800 s long; at most 120 s is allowed"


def test_paths_that_are_missing_or_leave_the_corpus(corpus: Path, tmp_path: Path, good: Path) -> None:
    outside = tmp_path / "outside.wav"
    outside.write_bytes(good.read_bytes())
    os.symlink(outside, corpus / "wav/link.wav")
    os.symlink("good.wav", corpus / "wav/inner.wav")
    os.symlink("loop.wav", corpus / "wav/loop.wav")
    manifest = (
        "missing\tx\twav/missing.wav\nup\tx\t../outside.wav\nround\tx\twav/../wav/good.wav\n"
        f"absolute\tx\t{outside}\nlink\tx\twav/link.wav\ninner\tx\twav/inner.wav\n"
        f"loop\tx\twav/loop.wav\nlong\tx\t{'a' * 5000}.wav\nfolder\tx\twav\n"
    )
    reasons = refusals(corpus, manifest)
    assert reasons.pop("inner") == ""
    assert reasons["missing"] == reasons["folder"] == "no such file"
    assert ".." in reasons["up"]
    assert ".." in reasons["round"]
    assert "absolute path" in reasons["absolute"]
    assert "symbolic link" in reasons["link"]
    assert all(reasons.values())


def test_an_id_with_dots_cannot_leave_the_corpus(corpus: Path, tmp_path: Path, good: Path) -> None:
    (tmp_path / "secret.wav").write_bytes(good.read_bytes())
    (corpus / "all.tsv").write_text("../../secret\tx\n", "utf-8")
    (found,) = IMPORTERS["tsv"](corpus, Defaults("en"))
    assert isinstance(found, Refused)
    assert ".." in found.reason


def test_rows_of_the_wrong_width_and_of_another_encoding(corpus: Path) -> None:
    (corpus / "all.tsv").write_bytes(
        b"id\ttext\tfile\nshort\tx\nlatin\tcaf\xe9\twav/good.wav\ngood\tfine\twav/good.wav\n"
    )
    reasons = {found.id: refusal(found) for found in IMPORTERS["tsv"](corpus, Defaults("en"))}
    assert reasons == {
        "short": "2 fields; 3 are expected (id, text, file)",
        "latin": "not valid UTF-8",
        "good": "",
    }


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [("split", "holdout", "allowed: train, dev, test"), ("language", "English", "two or three letters")],
)
def test_unknown_split_and_language(column: str, value: str, reason: str, corpus: Path) -> None:
    (corpus / "all.tsv").write_text(f"id\ttext\tfile\t{column}\na\tx\twav/good.wav\t{value}\n", "utf-8")
    (found,) = IMPORTERS["tsv"](corpus, Defaults(None if column == "language" else "en"))
    assert reason in refusal(found)


def test_a_recording_that_a_command_would_make_is_refused_and_not_run(corpus: Path, tmp_path: Path) -> None:
    source = {"type": "command", "channels": [0], "source": f"touch {tmp_path / 'ran'}"}
    recording = {"id": "r", "sources": [source], "sampling_rate": 16000, "num_samples": 16000, "duration": 1.0}
    cut = {"id": "c", "start": 0, "duration": 1.0, "channel": 0, "recording": recording, "type": "MonoCut"}
    (corpus / "a_cuts.jsonl").write_text(json.dumps({**cut, "supervisions": []}) + "\nnot json\n", "utf-8")
    found = list(IMPORTERS["lhotse"](corpus, Defaults("en")))
    assert [type(item) for item in found] == [Refused, Refused]
    assert "only files are read" in refusal(found[0])
    assert not (tmp_path / "ran").exists()


def test_a_recording_that_is_to_be_changed_when_it_is_read_is_refused(corpus: Path, good: Path) -> None:
    from lhotse import CutSet, Recording

    recording = Recording.from_file(good, recording_id="r").perturb_speed(1.1)
    CutSet.from_cuts([recording.to_cut()]).to_file(corpus / "a_cuts.jsonl")
    (found,) = IMPORTERS["lhotse"](corpus, Defaults("en"))
    assert "to be changed (Speed) when it is read" in refusal(found)


@pytest.mark.parametrize(
    ("start", "seconds", "reason"),
    [
        (-0.05, 1.6, ""),
        (-0.5, 2.0, "its text is of -0.50 to 1.50 s of a cut of 1.50 s"),
        (0.0, 2.0, "its text is of 0.00 to 2.00 s of a cut of 1.50 s"),
        (0.0, float("nan"), "its text is of 0.00 to nan s"),
    ],
)
def test_a_cut_that_lacks_a_part_of_what_is_said_is_refused(
    start: float, seconds: float, reason: str, corpus: Path, make_audio: Any
) -> None:
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

    recording = Recording.from_file(make_audio("wav/long.wav", seconds=3), recording_id="r")
    said = SupervisionSegment("s", "r", start, seconds, text="much more is said", language="en")
    cut = MonoCut("c", start=1.0, duration=1.5, channel=0, supervisions=[said], recording=recording)
    CutSet.from_cuts([cut]).to_file(corpus / "a_cuts.jsonl")
    (found,) = IMPORTERS["lhotse"](corpus, Defaults("en"))
    assert refusal(found).startswith(reason) and bool(refusal(found)) == bool(reason)
    assert not reason or "lhotse cut trim-to-supervisions" in refusal(found), "what to do"


def test_a_broken_line_of_a_manifest_costs_one_cut(corpus: Path, good: Path) -> None:
    source = {"type": "file", "channels": [0], "source": "wav/good.wav"}
    recording = {"id": "r", "sources": [source], "sampling_rate": 16000, "num_samples": 16000, "duration": 1.0}
    cut = {"start": 0, "duration": 1.0, "channel": 0, "recording": recording, "type": "MonoCut"}
    lines = [json.dumps({"id": name, **cut, "supervisions": []}) for name in ("a", "c")]
    (corpus / "a_cuts.jsonl").write_text(
        "\n".join([lines[0], "not json", '{"id": 1}', lines[1], "", ""]), "utf-8"
    )
    found = list(IMPORTERS["lhotse"](corpus, Defaults("en")))
    assert [type(item) for item in found] == [Found, Refused, Refused, Found]
    assert [item.file.split(" ")[0] for item in found] == [f"a_cuts.jsonl:{n}" for n in (1, 2, 3, 4)]
    compressed = gzip.compress("\n".join(lines * 99).encode())
    (corpus / "a_cuts.jsonl").unlink()
    (corpus / "b_cuts.jsonl.gz").write_bytes(compressed[: len(compressed) // 2])
    with pytest.raises(BadCorpus, match=r"b_cuts\.jsonl\.gz: broken in the middle"):
        list(IMPORTERS["lhotse"](corpus, Defaults("en")))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-clean-100", "train"),
        ("validation", "dev"),
        ("dev_en", "dev"),
        ("test1", "test"),
        ("devices", "devices"),
    ],
)
def test_names_of_splits(name: str, split: str) -> None:
    assert split_named(name) == split


def test_librispeech_tells_of_unmatched_audio_and_lines(corpus: Path, make_audio: Any) -> None:
    make_audio("1/2/1-2-0000.flac")
    (corpus / "1/2/1-2.trans.txt").write_text("1-2-0001 LOST WORDS\n", "utf-8")
    reasons = {found.id: refusal(found) for found in IMPORTERS["librispeech"](corpus, Defaults())}
    assert reasons == {"1-2-0001": "no such file", "1-2-0000": "no line in 1-2.trans.txt"}


def test_dialogues_keep_good_rows_and_refuse_broken_ones(corpus: Path) -> None:
    header = "\t".join(DIALOGUE.names)
    good = 'd\ttrain\ten\tWho?\tq\ten\t"Me", he said.\t'
    (corpus / "dialogues.tsv").write_text(f"\ufeff{header}\r\n{good}\r\nbroken\ttrain\r\n", "utf-8")
    rows = list(read_texts(corpus, "dialogues", DIALOGUE, "mine-"))
    assert isinstance(rows[0], dict)
    assert rows[0]["answer"] == '"Me", he said.'
    assert (rows[0]["id"], rows[0]["question_speech"], rows[0]["answer_speech"]) == ("mine-d", "mine-q", "")
    assert isinstance(rows[1], Refused)
    assert rows[1].reason == "2 fields, but the header names 8"
    assert pa.Table.from_pylist([rows[0]], DIALOGUE).num_rows == 1


def test_a_row_without_id_and_file_is_refused(corpus: Path) -> None:
    (corpus / "all.tsv").write_text("file\ttext\n\tlost\nwav/good.wav\tfine\n", "utf-8")
    lost, good = IMPORTERS["tsv"](corpus, Defaults("en"))
    assert refusal(lost) == "neither id nor file" and refusal(good) == ""


def test_a_shard_s_row_has_a_length(corpus: Path, good: Path) -> None:
    facts = {"text": "x", "language": "en", "speaker": "s", "source": "mine", "split": "test"}
    table = [
        {"id": str(seconds), "audio": good.read_bytes(), "duration_s": seconds, "sample_rate": 16_000, **facts}
        for seconds in (1.0, float("nan"), float("inf"), float("-inf"))
    ]
    (corpus / "speech").mkdir()
    pq.write_table(pa.Table.from_pylist(table, UTTERANCE), corpus / "speech" / "shard-00000.parquet")
    found = list(IMPORTERS["shards"](corpus, Defaults()))
    assert [refusal(item) for item in found] == [
        "",
        *(f"duration_s is {seconds}: a number of seconds is needed" for seconds in ("nan", "inf", "-inf")),
    ]
    assert found[1].file == "speech/shard-00000.parquet#2"


def test_a_broken_shard_stops_the_run_since_nobody_knows_what_is_lost(corpus: Path) -> None:
    (corpus / "speech").mkdir()
    (corpus / "speech" / "shard-00000.parquet").write_bytes(b"PAR1 half a shard")
    with pytest.raises(BadCorpus, match=r"shard-00000\.parquet: broken"):
        list(IMPORTERS["shards"](corpus, Defaults("en")))
