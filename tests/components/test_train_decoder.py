"""`python -m components.train_decoder` on a few tones: trained, taken as it is, or refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from components.tokenize.shards import UNITS
from components.train_decoder.__main__ import main
from cslm.audio import encode_flac
from cslm.decoder import SpeechDecoder
from cslm.decoder.corpus import SpeechFile
from cslm.decoder.flow import FlowMatching
from cslm.shards import UNKNOWN_SPEAKER, UTTERANCE, ShardWriter, read_rows
from cslm.tokenizer.corpus import tokenize
from cslm.tokenizer.speech_tokenizer import SpeechTokenizer, TokenizerConfig

ROOT = Path(__file__).parents[2]
PARAMS: dict[str, Any] = {
    "profile": "test",
    "languages": ["en", "zh"],
    "corpora": {"assistant": {"format": "shards", "path": "data/sample"}},
    "train_tokenizer": {"steps": 1},
    "train_decoder": {
        "steps": 3,
        "duration_steps": 2,
        "vocoder_steps": 3,
        "width": 16,
        "layers": 2,
        "vocoder_width": 16,
        "vocoder_layers": 1,
        "batch_seconds": 8,
        "vocoder_batch_seconds": 2,
    },
    "text_model": {"steps": 1},
    "pretrain": {"learning_rate": 0.001},
    "finetune": {"learning_rate": 0.001},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One MLflow store for all tests: to make it takes long."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def project(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the stages before leave: recordings, a tokenizer, and units at two speeds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CSLM_HOME", str(home))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_PARENT_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    write_params({})
    torch.manual_seed(1)
    tokenizer = SpeechTokenizer(TokenizerConfig(hidden=32, layers=1, levels=[4, 4], labels=["a", "b"]))
    tokenizer.save(tmp_path / "work/tokenizer")
    time = np.arange(16_000) / 16_000
    voices = {("en", "train"): "ann", ("zh", "train"): "wei", ("en", "dev"): "bob", ("zh", "dev"): "wei"}
    for language in ("en", "zh"):
        rows = []
        with ShardWriter(tmp_path / "work/accepted/utterances", UTTERANCE, prefix=language) as shards:
            for number in range(6):
                split = "train" if number < 4 else "dev"
                row = {
                    "id": f"{language}-{number}",
                    "audio": encode_flac((0.2 * np.sin((900 + 90 * number) * time)).astype(np.float32)),
                    "duration_s": 1.0,
                    "sample_rate": 16_000,
                    "text": "ab" if language == "en" else "你好",
                    "language": language,
                    "speaker": voices[language, split],
                    "source": "test",
                    "split": split,
                }
                shards.write(row)
                rows += [row | {"speed": speed} for speed in (1.0, 0.9)]
        with ShardWriter(tmp_path / "work/units" / language, UNITS) as units:
            for row in tokenize(tokenizer, rows, 10):
                units.write({name: row[name] for name in UNITS.names})
    return tmp_path


def write_params(changed: dict[str, Any]) -> None:
    decoder = PARAMS["train_decoder"] | changed
    Path("params.yaml").write_text(yaml.safe_dump(PARAMS | {"train_decoder": decoder}), "utf-8")


@pytest.mark.parametrize("vocoder", ["source_filter", "hifigan"])
def test_it_trains_a_decoder_for_the_voices_of_the_train_split(project: Path, vocoder: str) -> None:
    write_params({"vocoder": vocoder})
    main()
    decoder = SpeechDecoder.load(project / "work/decoder")
    assert decoder.config.voices == {"ann": "en", "wei": "zh"}, "bob is of dev alone"
    samples = decoder.speak([1, 2, 3], "ann")
    assert np.isfinite(samples).all()
    metrics = json.loads((project / "metrics/train_decoder.json").read_text("utf-8"))
    assert metrics["voices"] == 2
    assert metrics["dev"]["spoken"]["labels"] == metrics["dev"]["recorded"]["labels"] == {"en": 4, "zh": 8}
    assert metrics["dev"]["real_time_factor"] > 0


def test_faster_speech_is_that_of_another_voice(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, list[int]] = {}

    def look(flow: FlowMatching, corpus: SpeechFile, *_: object) -> None:
        for spoken in corpus.utterances:
            seen.setdefault(spoken.voice, []).append(spoken.frames)
        assert flow.voices.weight.shape[0] == 2 * 2 + 1
        assert torch.equal(flow.voices.weight[:2], flow.voices.weight[2:4]), "it begins as the voice it was"

    monkeypatch.setattr("components.train_decoder.__main__.train_flow", look)
    main()
    assert seen == {0: [25] * 4, 1: [25] * 4, 2: [28] * 4, 3: [28] * 4}, "1 s, and 1 s at 0.9 of its speed"
    assert SpeechDecoder.load(project / "work/decoder").flow.voices.weight.shape[0] == 2 + 1


def test_a_trained_one_is_taken_as_it_is(project: Path) -> None:
    main()
    shutil.copytree(project / "work/decoder", project / "models/decoder")
    before = SpeechDecoder.load(project / "models/decoder").speak([1, 2, 3], "wei")
    write_params({"checkpoint": "models/decoder", "steps": 0, "vocoder_steps": 0})
    main()
    assert np.array_equal(SpeechDecoder.load(project / "work/decoder").speak([1, 2, 3], "wei"), before)


def test_new_voices_are_learnt_only_if_they_are_asked_for(project: Path) -> None:
    main()
    shutil.move(project / "work/decoder", project / "known")
    rows = [{**row, "speaker": "ana"} for row in read_rows(Path("work/units/zh"))]
    with ShardWriter(Path("work/units/es"), UNITS) as shards:
        for row in rows:
            shards.write({**row, "id": f"es-{row['id']}", "language": "es"})
    write_params({"checkpoint": "known", "vocoder_steps": 0})
    main()
    assert SpeechDecoder.load(Path("work/decoder")).config.voices == {"ann": "en", "wei": "zh"}
    shutil.rmtree("work/decoder")
    write_params({"checkpoint": "known", "vocoder_steps": 0, "new_voices": True})
    main()
    assert SpeechDecoder.load(Path("work/decoder")).config.voices == {"ann": "en", "wei": "zh", "ana": "es"}


def test_a_decoder_without_any_voice_of_the_corpus_cannot_learn_from_it(project: Path) -> None:
    main()
    shutil.move(project / "work/decoder", project / "known")
    config = json.loads((project / "known/config.json").read_text("utf-8"))
    strangers = {"eve": "en", "li": "zh"}
    (project / "known/config.json").write_text(json.dumps(config | {"voices": strangers}), "utf-8")
    write_params({"checkpoint": "known", "vocoder_steps": 0})
    with pytest.raises(SystemExit, match=r"known has none of the voices .*\(ann, wei\).*new_voices true"):
        main()


def test_the_decoder_of_another_tokenizer_is_refused(project: Path) -> None:
    main()
    shutil.copytree(project / "work/decoder", project / "models/decoder")
    other = SpeechTokenizer(TokenizerConfig(hidden=32, layers=1, levels=[4, 4], labels=["a", "b"]))
    other.save(project / "work/tokenizer")
    write_params({"checkpoint": "models/decoder", "steps": 0, "vocoder_steps": 0})
    with pytest.raises(SystemExit, match=r"units of another tokenizer than work/tokenizer.*from-scratch"):
        main()


def test_a_missing_decoder_is_told(project: Path) -> None:
    write_params({"checkpoint": "models/decoder", "steps": 0, "vocoder_steps": 0})
    with pytest.raises(SystemExit, match=r"no decoder in models/decoder .* `make setup`"):
        main()


def called_unknown(folder: Path, schema: Any) -> None:
    """Take the names of all speakers in a folder of shards away."""
    rows = list(read_rows(folder))
    shutil.rmtree(folder)
    with ShardWriter(folder, schema) as shards:
        for row in rows:
            shards.write(row | {"speaker": UNKNOWN_SPEAKER})


def test_speakers_without_a_name_are_a_voice_in_each_language(project: Path) -> None:
    for language in ("en", "zh"):
        called_unknown(project / "work/units" / language, UNITS)
    called_unknown(project / "work/accepted/utterances", UTTERANCE)
    main()
    decoder = SpeechDecoder.load(project / "work/decoder")
    assert decoder.config.voices == {"unknown-en": "en", "unknown-zh": "zh"}
    assert decoder.natives("en") == ["unknown-en"]


def test_a_known_voice_keeps_its_language_when_others_are_learnt(project: Path) -> None:
    main()
    shutil.move(project / "work/decoder", project / "known")
    config = json.loads((project / "known/config.json").read_text("utf-8"))
    (project / "known/config.json").write_text(
        json.dumps(config | {"voices": {"ann": "fr", "li": "zh"}}), "utf-8"
    )
    write_params({"checkpoint": "known", "vocoder_steps": 0, "new_voices": True})
    main()
    voices = SpeechDecoder.load(Path("work/decoder")).config.voices
    assert voices == {"ann": "fr", "li": "zh", "ann-en": "en", "wei": "zh"}


def test_no_more_speech_is_taken_than_the_steps_can_use(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[int] = []
    monkeypatch.setattr(
        "components.train_decoder.__main__.train_flow",
        lambda flow, corpus, *_: heard.extend(spoken.voice for spoken in corpus.utterances),
    )
    write_params({"steps": 1, "batch_seconds": 4, "vocoder_steps": 1, "vocoder_batch_seconds": 2})
    with caplog.at_level(logging.INFO, "cslm"):
        main()
    assert 4 <= len(heard) < 12, "4 s of 16 utterances of a second"
    assert set(heard) == {0, 1, 2, 3}, "of every voice at every speed there is something"
    assert "of 0.0 h of speech; its steps can use 0.0 h" in caplog.text
