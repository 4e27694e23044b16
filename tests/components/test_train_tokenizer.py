"""CosyVoice's units get a recogniser: by it the pipeline can align them, as it does those of its own."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from components.align.__main__ import main as align
from components.settings import TrainTokenizer
from components.stage import StageFailed
from components.tokenize.__main__ import main as tokenize
from components.train_tokenizer.__main__ import main, speech_of_training, tokenizer_to_train
from cslm.audio import Samples, encode_flac
from cslm.shards import UTTERANCE, ShardWriter, read_rows
from cslm.tokenizer import COSYVOICE, open_tokenizer
from tests.cosyvoice_file import network

ROOT = Path(__file__).parents[2]
TONES = {"a": 300.0, "b": 900.0, "c": 2400.0}
PARAMS = {
    "profile": "test",
    "languages": ["zz"],
    "corpora": {"made": {"path": "unused", "format": "shards"}},
    "train_tokenizer": {
        "checkpoint": "cosyvoice",
        "steps": 150,
        "learning_rate": 5e-3,
        "batch_seconds": 20,
        "hidden": 32,
    },
    "align": {"words_per_chunk": 2},
    "text_model": {"steps": 1},
    "train_decoder": {"checkpoint": "unused"},
    "pretrain": {"learning_rate": 0.001},
    "finetune": {"learning_rate": 0.001},
}


def beep(text: str) -> Samples:
    """Each letter as 0.24 s of its tone, each blank as silence."""
    time = np.arange(3840) / 16_000
    parts = [0.3 * np.sin(2 * np.pi * TONES[c] * time) if c in TONES else 0 * time for c in f" {text} "]
    return np.concatenate(parts).astype(np.float32)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CSLM_HOME", str(tmp_path / "var"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_PARENT_RUN_ID", raising=False)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    network(tmp_path / "cosyvoice", "batch", reach=0)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS), "utf-8")
    rng = random.Random(1)
    with ShardWriter(tmp_path / "work/accepted/utterances", UTTERANCE) as shards:
        for number in range(60):
            text = " ".join("".join(rng.choices("abc", k=2)) for _ in range(3))
            samples = beep(text)
            row = {"id": str(number), "audio": encode_flac(samples), "duration_s": len(samples) / 16_000}
            row |= {"sample_rate": 16_000, "text": text, "language": "zz", "speaker": "s", "source": "made"}
            shards.write(row | {"split": "train" if number < 50 else "dev"})
    return tmp_path


def test_the_pipeline_takes_cosyvoice_s_units(project: Path) -> None:
    main()
    metrics = json.loads((project / "metrics/train_tokenizer.json").read_text("utf-8"))
    assert metrics["units"] == 4096
    assert metrics["dev"]["label_error"]["zz"] < 0.3  # by chance: 0.7
    trained = open_tokenizer(project / "work/tokenizer")
    assert trained.fingerprint == open_tokenizer(project / "cosyvoice").fingerprint
    tokenize("zz")
    align()
    assert json.loads((project / "metrics/align.json").read_text("utf-8"))["not_aligned"] == 0
    late = []
    for row in read_rows(project / "work/aligned"):
        frames = np.cumsum([0, *row["durations"]])
        starts = [frames[word["first"]] / 25 for word in row["words"]]
        assert starts[0] == 0, "the silence before the first word is part of it"
        late += [starts[1] - 0.96, starts[2] - 1.68]
    assert np.mean([-0.1 < each < 0.24 for each in late]) > 0.9, "a word begins in its first letter's sound"


def test_a_tokenizer_learns_to_hear_and_then_against_noise(project: Path) -> None:
    recipe = PARAMS["train_tokenizer"] | {"checkpoint": None, "steps": 2, "layers": 1, "noise_steps": 0}
    metrics = project / "metrics/train_tokenizer.json"
    fingerprints = []
    for noise_steps in (0, 2):
        params = PARAMS | {"train_tokenizer": recipe | {"noise_steps": noise_steps}}
        (project / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
        main()
        assert ("noise_skipped" in metrics.read_text("utf-8")) == bool(noise_steps)
        fingerprints.append(open_tokenizer(project / "work/tokenizer").fingerprint)
        shutil.rmtree(project / "work/tokenizer")
    assert fingerprints[0] != fingerprints[1]


def test_cosyvoice_hears_no_more_than_its_reader_can_learn_from(project: Path) -> None:
    few = PARAMS["train_tokenizer"] | {"steps": 2, "batch_seconds": 20}  # 40 of 120 s
    (project / "params.yaml").write_text(yaml.safe_dump(PARAMS | {"train_tokenizer": few}), "utf-8")
    main()
    metrics = json.loads((project / "metrics/train_tokenizer.json").read_text("utf-8"))
    assert 8 < metrics["utterances"] < 26


def test_of_much_speech_a_part_of_every_corpus_and_language_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    kinds = [*[("large", "en")] * 600, *[("small", "zh")] * 200, ("small", "en")]
    with ShardWriter(tmp_path / "work/accepted/utterances", UTTERANCE) as shards:
        for number, (source, language) in enumerate(kinds):
            row = {"id": str(number), "audio": b"", "duration_s": 18.0, "sample_rate": 16_000, "text": "a"}
            row |= {"language": language, "speaker": "s", "source": source, "split": "train"}
            shards.write(row)
            shards.write(row | {"id": f"dev-{number}", "split": "dev"})

    def heard(hours: float, seed: int) -> list[str]:
        with caplog.at_level(logging.INFO, "cslm"):
            return [row["id"] for row in speech_of_training(3600 * hours, seed)]

    part = heard(1.0, seed=1)
    hours = len(part) * 18 / 3600
    assert hours == pytest.approx(1.0, rel=0.15)
    assert f"hears {hours:.1f} of 4.0 h" in caplog.text
    of_kind = Counter(kinds[int(name)] for name in part)
    assert of_kind["large", "en"] / of_kind["small", "zh"] == pytest.approx(3, rel=0.3)
    assert of_kind["small", "en"] == 1
    assert heard(1.0, seed=1) == part != heard(1.0, seed=2)
    assert heard(4.1, seed=1) == [str(number) for number in range(801)]


def test_cosyvoice_s_tokenizer_learns_nothing_against_noise(project: Path) -> None:
    params = PARAMS | {"train_tokenizer": PARAMS["train_tokenizer"] | {"noise_steps": 2, "steps": 2}}
    (project / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
    with pytest.raises(SystemExit, match="noise_steps: CosyVoice's tokenizer is not trained here"):
        main()


def test_units_that_nothing_reads_are_refused(tmp_path: Path) -> None:
    network(tmp_path)
    with pytest.raises(StageFailed, match="nothing that reads them"):
        tokenizer_to_train(TrainTokenizer(checkpoint=str(tmp_path)), seed=1)


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / COSYVOICE).touch()
    with pytest.raises(StageFailed, match="cannot be read as an ONNX file"):
        tokenizer_to_train(TrainTokenizer(checkpoint=str(tmp_path), steps=10), seed=1)
