"""`python -m components.evaluate` on a tiny random model, and the report on answers that the test made up."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from components.evaluate.__main__ import fingerprint, main, read_split
from components.evaluate.figures import headlines
from components.evaluate.report import SplitResults, confusion, intents, label, percent, write_report
from components.evaluate.speech import SpeechResults
from components.settings import Settings
from cslm.audio import encode_flac
from cslm.decoder import DecoderConfig, SpeechDecoder
from cslm.decoder.vocoder import SourceFilterVocoder
from cslm.evaluation.error_rates import count_errors
from cslm.evaluation.held_out import Dialogue, Utterance
from cslm.evaluation.normalization import rules_for
from cslm.evaluation.speech import KINDS, Sounding, SpokenAnswer
from cslm.evaluation.streaming import Timing
from cslm.evaluation.tasks import Answer, Transcript
from cslm.sequences import Chunk, Parsed
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
RULES = {language: rules_for(language) for language in TEXTS}


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


def test_speech_by_voices_that_the_decoder_lacks_is_left_out(project: Path) -> None:
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


def test_a_missing_checkpoint_is_told(project: Path) -> None:
    (project / "work/model/config.json").unlink()
    with pytest.raises(SystemExit, match=r"work/model is no checkpoint.*finetune"):
        main()
    assert not (project / "report").exists()


def test_a_corpus_without_test_split_is_told(project: Path) -> None:
    (project / "params.yaml").write_text(yaml.safe_dump(PARAMS | {"languages": ["fr"]}))
    with pytest.raises(SystemExit, match=r"no utterance .* split 'test' .* fr"):
        main()


def _answer(name: str, languages: tuple[str, str], text: str, right: bool) -> Answer:
    asked, answered = languages
    dialogue = Dialogue(name, asked, "Is it <far>?", f"{name}-q", (1,), answered, "It is not far.")
    parsed = Parsed("is it far", (Chunk(text, (1, 2, 3)),), True)
    errors = count_errors("Is it far?", "is it far", RULES["en"])
    return Answer(dialogue, parsed, errors, right, 0.5, False, "en")


def test_the_report_shows_what_was_said_and_escapes_it(tmp_path: Path) -> None:
    utterance = Utterance("u1", "en", "The weather is fine", (1, 2))
    transcripts = [
        Transcript(
            utterance, "the whether is fine", count_errors(utterance.text, "the whether is fine", RULES["en"])
        )
    ]
    results = {"test": SplitResults(transcripts, [_answer("far-0", ("en", "en"), "It is <b>near</b>.", False)])}
    write_report(tmp_path, {}, results, SpeechResults(), RULES, Settings.model_validate(PARAMS))
    page = (tmp_path / "index.html").read_text("utf-8")
    assert "<del>weather</del>" in page
    assert "<ins>whether</ins>" in page
    assert "It is &lt;b&gt;near&lt;/b&gt;." in page
    assert "<b>near" not in page
    assert "3 units" in page
    assert "It is not far." in page


def test_the_right_answer_is_heard_beside_that_of_the_model(tmp_path: Path) -> None:
    errors = count_errors("Is it far?", "is it far", RULES["en"])
    heard = []
    for name, recorded in (("far-0", "far-0-a"), ("far-1", "")):
        answer = _answer(name, ("en", "en"), "It is far.", True)
        answer = replace(answer, dialogue=replace(answer.dialogue, answer_speech=recorded))
        vector = np.ones(1, np.float32)
        sounding = Sounding(
            name, "answer", "en", "ann", "It is far.", "is it far", errors, None, 3.0, vector, question()
        )
        heard.append(SpokenAnswer(answer, sounding, "zh" if recorded else "en"))
    recordings = dict.fromkeys(("far-0-q", "far-1-q", "far-0-a"), question())
    speech = SpeechResults([heard[0].sounding], heard, recordings)
    speech = replace(speech, soundings=[replace(heard[0].sounding, kind=kind) for kind in KINDS])
    came = (("heard", 0.1, 0.0), ("text", 0.1, 0.0), ("speech", 0.2, 0.5), ("speech", 0.4, 0.5))
    speech = replace(speech, timings=[Timing(0.1, 0.2, 0.9, 1.0, False, came)])
    results = {"test": SplitResults([], [each.answer for each in heard])}
    times = ("first_audio_ms", "full_chain_first_audio_ms", "underruns", "rtf", "audio_n")
    metrics: dict[str, Any] = {"resynthesis": {}, "voices": {}, "latency": dict.fromkeys(times, 1.0)}
    write_report(tmp_path, metrics, results, speech, RULES, Settings.model_validate(PARAMS))
    page = (tmp_path / "index.html").read_text("utf-8")
    for picture in ("Spectrograms of a recording", "When text and sound of one answer came"):
        assert re.search(rf'<img src="data:image/svg[^"]+" alt="{picture}', page)
    answers = page.partition("<h2>Spoken answers</h2>")[2].split('<dl class="dialogue">')[1:3]
    assert [each.partition("</dl>")[0].count("<audio") for each in answers] == [3, 2]
    assert all("It is not far." in each.partition("<dt>expected</dt>")[2] for each in answers)
    sounds = page.partition("takes it for.</p>")[2].partition("</table>")[0]
    assert re.findall(r"sounds like (\w+)", sounds) == ["English", "Chinese"]
    assert re.findall(r">(\d+)</span>", sounds) == ["1", "1"]


def test_answers_are_heard_where_no_recording_is_by_a_known_voice(tmp_path: Path) -> None:
    answer = _answer("far-0", ("en", "en"), "It is far.", True)
    errors = count_errors("It is far.", "it is far", RULES["en"])
    vector = np.ones(1, np.float32)
    sounding = Sounding(
        "far-0", "answer", "en", "ann", "It is far.", "it is far", errors, None, 3.0, vector, question()
    )
    speech = SpeechResults([], [SpokenAnswer(answer, sounding, "en")], {"far-0-q": question()})
    results = {"test": SplitResults([], [answer])}
    write_report(tmp_path, {}, results, speech, RULES, Settings.model_validate(PARAMS))
    page = (tmp_path / "index.html").read_text("utf-8")
    assert "no recording by a voice of the decoder" in page
    assert page.partition("<h2>Spoken answers</h2>")[2].count("<audio") == 2


def test_a_recording_of_the_answers_makes_no_other_test_set(project: Path) -> None:
    items = read_split("test", Settings.model_validate(PARAMS))
    assert any(dialogue.answer_speech for dialogue in items.dialogues)
    unheard = replace(items, dialogues=[replace(dialogue, answer_speech="") for dialogue in items.dialogues])
    assert fingerprint(unheard) == fingerprint(items)
    asked = replace(items, dialogues=[replace(dialogue, answer="No.") for dialogue in items.dialogues])
    assert fingerprint(asked) != fingerprint(items)


def test_intents_are_sorted_weakest_first() -> None:
    answers = [
        _answer("add-0-q-en", ("en", "en"), "x", True),
        _answer("add-1-q-en", ("en", "zh"), "x", False),
        _answer("color-0-q-en", ("en", "en"), "x", True),
        *(_answer(f"body-{i}-q-en", ("en", "en"), "x", i < 2) for i in range(3)),
        _answer("unnamed", ("en", "en"), "x", True),
    ]
    table = intents(answers)
    assert table["pairs"] == [("en", "en"), ("en", "zh")]
    assert table["rows"] == [
        ("add", [(1, 1), (0, 1)], 0.5, 2),
        ("body", [(2, 3), (0, 0)], pytest.approx(2 / 3), 3),
    ]
    assert table["perfect"] == ["color"]


def test_confusion_counts_languages_of_each_asked_language() -> None:
    pairs = [("en", "en"), ("es", "en"), ("es", "es"), ("es", "es")]
    assert confusion(["en", "zh", "es"], pairs) == {
        "en": {"en": 1, "zh": 0, "es": 0},
        "es": {"en": 1, "zh": 0, "es": 2},
    }
    assert confusion(["en"], [("en", "")]) == {"en": {"en": 0, "": 1}}


def test_headlines_judge_by_direction() -> None:
    metrics: dict[str, Any] = {
        "asr": {"en": {"wer": 0.05, "n": 9, "ci95": [0.01, 0.1]}, "zh": {"cer": 0.0501, "n": 9}},
        "conversation": {"en": {"exact_match": 0.9}},
        "cross_lingual": {"en_zh": {"exact_match": 0.84, "off_target": 0.01, "ci95": [0.8, 0.9]}},
        "mt": {"en_zh": {"bleu": 50.0}},
        "heldout_voice": {"asr": {"en": {"wer": 0.2}}},
    }
    metrics["tts"] = {"zh": {"cer": 0.09, "reference_cer": 0.06}}  # at most 3.8 points above
    metrics["dnsmos"] = {"tts": {"en": {"mean": 2.9}}, "reference": {"en": {"mean": 3.3}}}
    metrics["latency"] = {"first_audio_ms": 700.0, "rtf": 0.31, "underruns": 0.0, "audio_n": 30}
    metrics["latency"]["underruns_ci95"] = [0.0, 0.1135]
    metrics["cross_lingual"]["en_zh"] |= {"speech_off_target": 0.01, "speech_n": 100}
    found = {h.name: h for h in headlines(metrics)}
    assert {name: h.reached for name, h in found.items()} == {
        "asr.en.wer": True,
        "asr.zh.cer": False,
        "conversation.en.exact_match": True,
        "cross_lingual.en_zh.exact_match": False,
        "cross_lingual.en_zh.off_target": False,  # must stay below 1 %
        "mt.en_zh.bleu": None,
        "tts.zh.cer": True,
        "tts.zh.reference_cer": None,
        "dnsmos.tts.en.mean": False,
        "dnsmos.reference.en.mean": None,
        "latency.first_audio_ms": True,
        "latency.rtf": False,
        "latency.underruns": True,
        "cross_lingual.en_zh.speech_off_target": False,  # must stay below 1 %
        "heldout_voice.asr.en.wer": False,
    }
    assert found["asr.en.wer"].paper == 0.098
    assert found["asr.en.wer"].ci95 == (0.01, 0.1)
    assert found["latency.underruns"].ci95 == (0.0, 0.1135)
    assert (found["latency.underruns"].n, found["cross_lingual.en_zh.speech_off_target"].n) == (30, 100)
    assert found["cross_lingual.en_zh.off_target"].ci95 is None, "the interval of another figure"


def test_figures_have_names_people_read() -> None:
    assert label("heldout_voice.asr.en.wer") == "Speech recognition, English, held-out voice: word error rate"
    assert label("cross_lingual.zh_en.exact_match") == "Cross-lingual answers, Chinese to English: exact match"
    assert (percent(0.0), percent(0.0312), percent(0.004)) == ("0.0 %", "3.1 %", "0.40 %")
