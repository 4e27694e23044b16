"""Bad parameters are refused before any work, in words that say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from components.settings import BadSettings, load_settings

ROOT = Path(__file__).parents[2]


def merge(base: dict, over: dict) -> dict:  # type: ignore[type-arg]
    """`over` laid onto `base`."""
    both = {
        key: merge(base[key], over[key])
        for key in base.keys() & over.keys()
        if isinstance(base[key], dict) and isinstance(over[key], dict)
    }
    return {**base, **over, **both}


def write(path: Path, **changes: object) -> Path:
    settings = merge(yaml.safe_load((ROOT / "params.yaml").read_text("utf-8")), changes)
    settings["corpora"] = {key: corpus for key, corpus in settings["corpora"].items() if corpus is not None}
    path.write_text(yaml.safe_dump(settings), "utf-8")
    return path


@pytest.mark.parametrize("profile", sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml")))
def test_every_profile_is_valid(profile: str, tmp_path: Path) -> None:
    overlay = yaml.safe_load((ROOT / "profiles" / f"{profile}.yaml").read_text("utf-8"))
    assert load_settings(write(tmp_path / "params.yaml", **overlay)).profile == profile


def test_the_default_profile_is_sample() -> None:
    assert load_settings(ROOT / "params.yaml").profile == "sample"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"align": {"word_per_chunk": 7}}, ["align.word_per_chunk", "allowed there: words_per_chunk"]),
        ({"finetune": {"learning_rate": "fast"}}, ["finetune.learning_rate", "'fast'", "valid number"]),
        ({"finetune": {"learning_rate": -1.0}}, ["finetune.learning_rate", "-1.0", "greater than 0"]),
        ({"languages": []}, ["languages", "[]", "at least 1"]),
        ({"corpora": {"x": {"format": "mp3", "path": "p"}}}, ["corpora.x.format", "'mp3'", "'librispeech'"]),
        ({"corpora": {"x": {"format": "tsv"}}}, ["corpora.x.path", "missing"]),
        ({"train_tokenizer": {"checkpoint": None, "steps": 0}}, ["train_tokenizer", "steps > 0"]),
        ({"train_tokenizer": {"levels": [8, 1]}}, ["train_tokenizer.levels", "greater than or equal to 2"]),
        ({"train_tokenizer": {"hidden": 101}}, ["train_tokenizer.hidden", "multiple of 8"]),
        ({"text_model": {"heads": 5}}, ["text_model", "multiple of twice the heads"]),
        ({"validate": {"min_duration_s": 40.0}}, ["validate", "less than max_duration_s"]),
        ({"validate": {"characters_per_second": {"en": [9.0, 2.0]}}}, ["validate", "lower limit first"]),
        ({"pretrain": {"learning_rate": float("inf")}}, ["pretrain.learning_rate", "finite"]),
        (
            {"finetune": {"ranks": 3}},
            ["params.yaml: ", "batch_tokens 2048 are 4 rows of 512", "3 ranks"],
        ),
        ({"compose": {"finetune_length": 4096}, "finetune": {"micro_batch_tokens": 2048}}, ["one row of 4096"]),
        ({"compose": {"store": "bucket/rows"}}, ["compose.store", "'bucket/rows'", "give s3://bucket/folder"]),
        ({"compose": {"store": "s3://bucket/rows#1"}}, ["compose.store", "give s3://bucket/folder"]),
        ({"train_decoder": {"new_voices": True, "steps": 0}}, ["train_decoder", "steps > 0"]),
        ({"train_tokenizer": {"units_stay": True, "checkpoint": None, "steps": 9}}, ["name one"]),
        ({"train_tokenizer": {"units_stay": True, "noise_steps": 9}}, ["noise_steps", "give one of them"]),
        (
            {"evaluate": {"llm_judge": {"url": "http://host:abc/v1", "model": "big"}}},
            ["evaluate.llm_judge.url", "'http://host:abc/v1'", "invalid port", "http://host:8000/v1"],
        ),
        ({"evaluate": {"llm_judge": {"url": "ftp://host/v1", "model": "big"}}}, ["'http' or 'https'"]),
        (
            {"evaluate": {"llm_judge": {"url": "http://host/v1", "model": "big", "key": "k"}}},
            ["evaluate.llm_judge.key is not a known key; allowed there: url, model, answers"],
        ),
        (
            {"corpora": {"x": {"format": "tsv", "path": "p", "lang": "en"}}},
            ["corpora.x.lang is not a known key; allowed there: format, path"],
        ),
        ({"tokenize": {"speeds": [0.9, 1.0]}}, ["tokenize.speeds.1", "always there"]),
        ({"tokenize": {"speeds": [0.9, 0.9]}}, ["tokenize.speeds", "each only once"]),
        ({"languages": ["en", "en"]}, ["languages", "each only once"]),
        (
            {"corpora": {"x": {"format": "tsv", "path": "p", "split": "training"}}},
            ["corpora.x.split", "'train'"],
        ),
        ({"pretrain": {"optimizer": "muon", "zero_stage": 2}}, ["pretrain", "zero_stage 0 only, not 2"]),
        (
            {"pretrain": {"optimizer": "adamw", "offload": "optimizer", "zero_stage": 1}},
            ["optimizer needs zero_stage 2 or 3"],
        ),
        (
            {"compose": {"pretrain": dict.fromkeys(("asr", "tts", "mt", "text", "repeat"), 0.0)}},
            ["compose.pretrain", "more than 0"],
        ),
        ({"compose": {"length": 8}}, ["compose.length", "8", "greater than or equal to 32"]),
        ({"surprise": 1}, ["surprise", "not a known key", "languages"]),
    ],
)
def test_an_error_names_key_value_and_what_is_allowed(tmp_path: Path, changes: dict, said: list[str]) -> None:  # type: ignore[type-arg]
    with pytest.raises(BadSettings) as error:
        load_settings(write(tmp_path / "params.yaml", **changes))
    for words in said:
        assert words in str(error.value)


def test_a_file_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("a: [", "utf-8")
    with pytest.raises(BadSettings, match=r"params\.yaml"):
        load_settings(path)
