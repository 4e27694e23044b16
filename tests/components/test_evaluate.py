"""`python -m components.evaluate` on a tiny random model."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from components.evaluate.__main__ import UNASKED, fingerprint, main, parts, read_split, recording_hashes
from components.evaluate.report import percent
from components.settings import Settings
from cslm.audio import encode_flac
from cslm.decoder import DecoderConfig, SpeechDecoder
from cslm.decoder.vocoder import SourceFilterVocoder
from cslm.evaluation.held_out import HeldOut
from cslm.shards import UTTERANCE, ShardWriter
from cslm.tables import DIALOGUE, TRANSLATION
from cslm.text_model import random_llama, train_text_tokenizer
from cslm.tokenizer.speech_tokenizer import SpeechTokenizer, TokenizerConfig
from cslm.vocabulary import extend
from tests.recordings import question

PARAMS: dict[str, Any] = {
    "profile": "test",
    "languages": ["en", "zh"],
    "corpora": {"assistant": {"format": "shards", "path": "data/sample"}},
    "train_tokenizer": {"steps": 1},
    "train_decoder": {"checkpoint": "models/decoder"},
    "text_model": {"steps": 1},
    "pretrain": {"learning_rate": 0.001},
    "finetune": {"learning_rate": 0.001},
    "evaluate": {
        "batch_size": 4,
        "latency_questions": 2,
        "limit": 2,
        "judged_recordings": 2,
        "judged_answers": 1,
    },
}
ROOT = Path(__file__).parents[2]
TEXTS = {"en": ("Is it far?", "It is not far."), "zh": ("远吗？", "不太远。")}
SPLITS = ("train", "dev", "test", "heldout_voice")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One MLflow store for all tests: to make it takes long."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def project(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the stages before leave: a checkpoint, utterances with units, dialogues and translations."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CSLM_HOME", str(home))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_PARENT_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    tokenizer = train_text_tokenizer([text for pair in TEXTS.values() for text in pair], 270)
    model = random_llama(tokenizer, hidden=32, layers=1, heads=2, seed=1)
    extend(model, tokenizer, units=8, seed=1)
    model.save_pretrained(tmp_path / "work/model")
    tokenizer.save_pretrained(tmp_path / "work/model")
    torch.manual_seed(1)
    config = TokenizerConfig(hidden=32, layers=1, levels=[2, 2, 2], labels=["a", "b"])
    SpeechTokenizer(config).save(tmp_path / "work/tokenizer")
    voices = {"ann": "en", "wei": "zh"}
    decoder = SpeechDecoder(DecoderConfig(8, voices, "", 16, 1, 4, 16, 1), SourceFilterVocoder(16, 1))
    decoder.save(tmp_path / "work/decoder")
    shutil.copy(ROOT / "models.yaml", tmp_path)
    _write_items(tmp_path / "work")
    return tmp_path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """No package index in reach, and nothing fetched before."""
    shutil.rmtree(home / "models", ignore_errors=True)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_RETRIES", "0")


def _write_items(work: Path) -> None:
    utterances = [
        {"id": f"far-{i}-{s}-{lang}", "language": lang, "split": s, "text": TEXTS[lang][0], "units": [i, 5, 6]}
        for i in range(3)
        for s in SPLITS
        for lang in TEXTS
    ]
    dialogues = [
        (
            f"{u['id']}-to-{lang}",
            u["split"],
            u["language"],
            u["text"],
            u["id"],
            lang,
            TEXTS[lang][1],
            u["id"] if lang == "zh" else "",
        )
        for u in utterances
        for lang in TEXTS
    ]
    translations = [(f"t-{s}", s, "en", TEXTS["en"][0], "zh", TEXTS["zh"][0]) for s in SPLITS]
    for folder in ("aligned", "accepted/utterances"):
        (work / folder).mkdir(parents=True)
    voices = {"en": "ann", "zh": "wei"}
    with ShardWriter(work / "accepted/utterances", UTTERANCE) as shards:
        for number, u in enumerate(utterances):
            audio = encode_flac(question() * np.float32(1 - number / 100))
            sound = {"audio": audio, "duration_s": 1.0, "sample_rate": 16_000, "source": "test"}
            about = {name: u[name] for name in ("id", "text", "language", "split")}
            shards.write(about | sound | {"speaker": voices[str(u["language"])]})
    pq.write_table(pa.Table.from_pylist(utterances), work / "aligned/shard-00000.parquet")
    for name, schema, rows in (
        ("dialogues", DIALOGUE, dialogues),
        ("translations", TRANSLATION, translations),
    ):
        columns = [dict(zip(schema.names, row, strict=True)) for row in rows]
        pq.write_table(pa.Table.from_pylist(columns, schema), work / f"accepted/{name}.parquet")


def test_the_stage_measures_everything(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main()
    metrics = json.loads((project / "metrics/evaluation.json").read_text("utf-8"))
    for numbers in (metrics, metrics["dev"], metrics["heldout_voice"]):
        assert numbers["asr"]["en"].keys() == {"wer", "n", "words", "ci95"}
        assert numbers["asr"]["zh"].keys() == {"cer", "n", "characters", "ci95"}
        assert numbers["asr"]["en"]["n"] == 2  # of three: the limit
        assert numbers["tq"]["zh"]["n"] > 0
        assert numbers["conversation"].keys() == {"en", "zh"}
        assert numbers["cross_lingual"].keys() == {"en_zh", "zh_en"}
        assert {"exact_match", "f1", "off_target", "well_formed", "n", "ci95"} <= numbers["conversation"][
            "en"
        ].keys()
    assert {"mt", "text_instruction", "alignment", "units", "latency", "later_turn"} <= metrics.keys()
    second = {"second_wer", "second_reference_wer"}
    label = {"label_error", "label_error_ci95", "label_n"}
    label |= {"reference_label_error", "reference_label_error_ci95"}
    assert (
        metrics["tts"]["en"].keys() == {"wer", "ci95", "reference_wer", "reference_ci95", "n"} | second | label
    )
    assert len(metrics["test_set"]) == 64
    settings = Settings.model_validate(PARAMS | {"seed": 7})
    chosen = [read_split("test", each) for each in (settings, Settings.model_validate(PARAMS))]
    assert chosen[0] == chosen[1], "another seed of training is measured on the same items"
    assert metrics["resynthesis"]["zh"].keys() == {"cer", "ci95", "reference_cer", "reference_ci95", "n"}
    for kind in ("reference", "resynthesis", "tts"):
        assert 1 <= metrics["dnsmos"][kind]["en"]["mean"] <= 5
        assert -1 <= metrics["speaker_similarity"][kind]["zh"]["mean"] <= 1
    assert metrics["speaker_similarity"]["reference"]["en"]["n"] == 2
    assert metrics["voices"]["zh"]["wei"].keys() == {
        *("reference_cer", "resynthesis_cer", "cer", "dnsmos", "speaker_similarity", "n")
    }
    assert {"mt", "latency"}.isdisjoint(metrics["heldout_voice"])
    assert -1 <= metrics["alignment"]["similarity"] <= 1
    assert metrics["units"]["en"]["perplexity"] > 1
    lines = capsys.readouterr().out.splitlines()
    assert all(re.fullmatch(r"progress: [a-z ]+ \d+/\d+", line) for line in lines)
    assert "progress: asr en 2/2" in lines
    first = json.loads((project / "report/evaluation/headlines.json").read_text("utf-8"))
    assert first[0]["title"] == "Speech recognition, English: word error rate"
    assert first[0]["value"] == percent(metrics["asr"]["en"]["wer"])
    page = (project / "report/evaluation/index.html").read_text("utf-8")
    assert "at most 2 items of each kind" in page
    assert page.count("<audio") >= 4 * 3, "recording, units spoken again and text read aloud of each"
    assert not re.search(r"(src|href)=\"(?!data:)", page), "the page needs nothing beside it"
    spoken = [
        json.loads(line) for line in (project / "report/evaluation/dialogues.jsonl").open(encoding="utf-8")
    ]
    assert len(spoken) == 3 * 4 * 2
    run = mlflow.get_run(metrics["mlflow_run_id"])
    assert run.data.metrics["asr.en.wer"] == pytest.approx(metrics["asr"]["en"]["wer"])
    assert "evaluation/index.html" in [a.path for a in mlflow.artifacts.list_artifacts(
        run_id=run.info.run_id, artifact_path="evaluation"
    )]  # fmt: skip


def test_speech_by_voices_that_the_decoder_lacks_is_left_out(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lone = {"ann": "en"}
    decoder = SpeechDecoder(DecoderConfig(8, lone, "", 16, 1, 4, 16, 1), SourceFilterVocoder(16, 1))
    decoder.save(project / "work/decoder")
    params = (project / "params.yaml").read_text("utf-8")
    assert "latency_questions: 2" in params
    (project / "params.yaml").write_text(
        params.replace("latency_questions: 2", "latency_questions: 99"), "utf-8"
    )
    main()
    metrics = json.loads((project / "metrics/evaluation.json").read_text("utf-8"))
    assert metrics["resynthesis"].keys() == metrics["voices"].keys() == {"en"}
    page = (project / "report/evaluation/index.html").read_text("utf-8")
    speech = page.partition("Speech, as others hear it")[2].partition("</table>")[0]
    assert "English, WER" in speech and "Chinese" not in speech
    lines = capsys.readouterr().out.splitlines()
    lack = "the decoder has no voice of that language"
    assert f"note: 4 answers in zh are neither heard nor timed: {lack}" in lines
    assert "note: 2 recordings are in languages that no voice of the decoder speaks" in lines
    assert f"4 answers in Chinese are neither heard nor timed: {lack}" in page
    [*_, last] = [line for line in lines if line.startswith("progress: speech ")]
    done, total = last.removeprefix("progress: speech ").split("/")
    assert done == total, "what has no voice is not waited for"


def test_recordings_of_strangers_are_spoken_again_in_the_voices_there_are(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = {"bob": "en", "li": "zh"}
    decoder = SpeechDecoder(DecoderConfig(8, others, "", 16, 1, 4, 16, 1), SourceFilterVocoder(16, 1))
    decoder.save(project / "work/decoder")
    main()
    metrics = json.loads((project / "metrics/evaluation.json").read_text("utf-8"))
    for kind in ("tts", "resynthesis"):
        assert {language: metrics[kind][language]["n"] for language in ("en", "zh")} == {"en": 2, "zh": 2}
    assert {language: list(voices) for language, voices in metrics["voices"].items()} == {
        "en": ["bob"],
        "zh": ["li"],
    }
    assert "speaker_similarity" not in metrics, "nobody should sound like them"
    assert "note: 4 recordings are spoken again in another voice" in capsys.readouterr().out


@pytest.mark.usefixtures("offline")
def test_without_judges_speech_is_not_measured_and_nothing_is_made_up(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main()
    metrics = json.loads((project / "metrics/evaluation.json").read_text("utf-8"))
    assert {"dnsmos", "speaker_similarity"}.isdisjoint(metrics)
    assert {"wer", "reference_wer", "ci95"}.isdisjoint(metrics["tts"]["en"])
    assert metrics["resynthesis"].keys() == {"en"}, "by Pocketsphinx, which is here, and knows English alone"
    assert {"second_wer", "second_reference_wer"} <= metrics["tts"]["en"].keys()
    assert {"speech_off_target", "speech_wer", "speech_dnsmos"}.isdisjoint(metrics["conversation"]["en"])
    told = capsys.readouterr().out
    first = json.loads((project / "report/evaluation/headlines.json").read_text("utf-8"))
    page = (project / "report/evaluation/index.html").read_text("utf-8")
    for judged in ("language of the sound (Whisper)", "Sound quality (DNSMOS)", "Likeness of the voice"):
        assert re.search(rf"note: .*{re.escape(judged)}.* is not measured: ", told)
        assert re.search(rf"{re.escape(judged)}.*: not measured\. ", page)
        [row] = [row for row in first if judged in row["title"]]
        assert (row["value"], row["reached"]) == ("not measured", None)
    assert page.count("<audio") >= 4 * 3 and "Spectrograms of a recording" in page, (
        "to hear, no judge is needed"
    )


@pytest.mark.usefixtures("offline")
def test_questions_without_their_speech_are_told_of(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = project / "work/accepted/dialogues.parquet"
    rows = pq.read_table(path).to_pylist()
    lost = next(row["question_speech"] for row in rows if row["split"] == "dev")
    speechless = [{**row, "question_speech": "gone"} if row["question_speech"] == lost else row for row in rows]
    pq.write_table(pa.Table.from_pylist(speechless, DIALOGUE), path)
    main()
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert notes[:1] == ["note: dev: 2 questions are not asked, as their speech is not there"]


@pytest.mark.usefixtures("offline")
def test_a_report_that_cannot_be_written_does_not_cost_the_figures(project: Path) -> None:
    (project / "report").write_text("a file where the folder should be")
    with pytest.raises(NotADirectoryError):
        main()
    run = mlflow.last_active_run()
    assert run is not None and run.info.status == "FAILED"
    assert {"asr.en.wer", "conversation.zh.exact_match"} <= run.data.metrics.keys()


def test_a_missing_checkpoint_is_told(project: Path) -> None:
    (project / "work/model/config.json").unlink()
    with pytest.raises(SystemExit, match=r"work/model is no checkpoint.*finetune"):
        main()
    assert not (project / "report").exists()


def test_a_corpus_without_test_split_is_told(project: Path) -> None:
    (project / "params.yaml").write_text(yaml.safe_dump(PARAMS | {"languages": ["fr"]}))
    with pytest.raises(SystemExit, match=r"no utterance .* split 'test' .* fr"):
        main()


def _fingerprint_of_old(items: HeldOut) -> str:
    """As versions that are in registries already have been measured: every row was read for every part."""
    asked = {utterance.id for utterance in items.utterances}
    digest = hashlib.sha256()
    everything: list[Any] = [*items.utterances, *items.dialogues, *items.translations]
    for item in everything:
        facts = {name: value for name, value in asdict(item).items() if name not in UNASKED}
        digest.update(json.dumps(facts, sort_keys=True, ensure_ascii=False).encode())
    rows = pq.read_table(Path("work/accepted/utterances")).to_pylist()
    heard = [row["audio"] for row in rows if row["split"] == items.split and row["id"] in asked]
    for sound in sorted(hashlib.sha256(audio).hexdigest() for audio in heard):
        digest.update(sound.encode())
    return digest.hexdigest()


@pytest.mark.parametrize("limit", [2, None])
def test_versions_of_old_can_still_be_compared(project: Path, limit: int | None) -> None:
    settings = Settings.model_validate(PARAMS | {"evaluate": {**PARAMS["evaluate"], "limit": limit}})
    items = read_split("test", settings)
    sounds = recording_hashes(items)
    assert fingerprint(items, sounds) == _fingerprint_of_old(items)
    chinese = [utterance for utterance in items.utterances if utterance.language == "zh"]
    asked = [dialogue for dialogue in items.dialogues if dialogue.pair == ("en", "zh")]
    found = parts(items, sounds)
    assert found.keys() == {"en", "zh", "en_en", "en_zh", "zh_en", "zh_zh"}
    assert found["zh"] == _fingerprint_of_old(HeldOut("test", chinese, [], []))
    assert found["en_zh"] == _fingerprint_of_old(HeldOut("test", [], asked, items.translations))


def test_a_recording_of_the_answers_makes_no_other_test_set(project: Path) -> None:
    items = read_split("test", Settings.model_validate(PARAMS))
    assert any(dialogue.answer_speech for dialogue in items.dialogues)
    unheard = replace(items, dialogues=[replace(dialogue, answer_speech="") for dialogue in items.dialogues])
    sounds = recording_hashes(items)
    assert fingerprint(unheard, sounds) == fingerprint(items, sounds)
    asked = replace(items, dialogues=[replace(dialogue, answer="No.") for dialogue in items.dialogues])
    assert fingerprint(asked, sounds) != fingerprint(items, sounds)
