"""The profiles say what the paper says, and the plan of a profile is a plan of its training."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from components.fetch.catalog import load_catalog
from components.settings import Settings, load_settings
from cslm.generation import Sampling
from cslm.plan.profiles import PROFILES
from cslm.tokenizer.cosyvoice import UNITS
from tests.components.test_settings import ROOT, write


@pytest.fixture
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Those of a profile."""
    overlay = ROOT / "profiles" / f"{request.param}.yaml"
    changes = yaml.safe_load(overlay.read_text("utf-8")) if overlay.exists() else {}
    return load_settings(write(tmp_path / "params.yaml", **changes))


def units_of(settings: Settings) -> int:
    """Of CosyVoice's tokenizer, or of the one that the profile trains."""
    tokenizer = settings.train_tokenizer
    return UNITS if "cosyvoice" in str(tokenizer.checkpoint) else math.prod(tokenizer.levels)


@pytest.mark.parametrize("settings", PROFILES, indirect=True)
def test_the_plan_is_of_what_the_profile_trains(settings: Settings) -> None:
    plan = PROFILES[settings.profile]
    lengths = settings.compose.length, settings.compose.finetune_length or settings.compose.length
    for phase, length in zip(plan.phases, lengths, strict=True):
        section = getattr(settings, phase.name)
        assert (phase.rows * phase.length, phase.length) == (section.batch_tokens, length)
        assert phase.epochs == section.epochs
    assert plan.units in (units_of(settings), 0)


@pytest.mark.parametrize("settings", ["smollm2-135m"], indirect=True)
def test_the_plan_counts_the_passes_of_the_profile(settings: Settings) -> None:
    compose, tokens = settings.compose, PROFILES["smollm2-135m"].tokens
    passes = [mixture.asr + mixture.tts for mixture in (compose.pretrain, compose.finetune)]
    assert tokens["pretrain"] / tokens["finetune"] == pytest.approx(passes[0] / passes[1])


@pytest.mark.parametrize("settings", ["llama3.1-8b"], indirect=True)
def test_the_papers_tokens_are_those_that_the_profile_takes(settings: Settings) -> None:
    """6.1 B of speech with text, 0.6 B of translation, 1.9 B of text; 500 k dialogues, some of that text."""
    first, second = settings.compose.pretrain, settings.compose.finetune
    tokens = PROFILES["llama3.1-8b"].tokens
    assert tokens["pretrain"] == pytest.approx(
        6.1e9 * (first.asr + first.tts) + 0.6e9 * first.mt + 1.9e9 * first.text
    )
    assert tokens["pretrain"] == pytest.approx(8.6e9), "as in the paper"
    assert (second.interleaved, second.cross_lingual) == (1, 1)
    assert tokens["finetune"] == pytest.approx(500_000 * 700 + 1.9e9 * second.text)


@pytest.mark.parametrize("settings", ["llama3.1-8b"], indirect=True)
def test_the_paper_is_trained_as_in_the_paper(settings: Settings) -> None:
    """The numbers of arXiv 2604.11096 and of its released scripts."""
    first, second, compose = settings.pretrain, settings.finetune, settings.compose
    assert (first.batch_tokens, compose.length) == (2 * 6 * 24 * 1024, 1024)
    assert (second.batch_tokens, compose.finetune_length) == (32 * 4096, 4096)
    assert (first.learning_rate, second.learning_rate) == (6e-5, 1e-5)
    for phase in (first, second):
        assert (phase.epochs, phase.max_steps, phase.speech_loss) == (1.0, None, 1.0)
        assert (phase.optimizer, phase.weight_decay, phase.warmup) == ("adamw", 0.0, 0.03)
        assert (phase.zero_stage, phase.half_precision) == (2, True)
    assert compose.pretrain.model_dump() == {"asr": 0.5, "tts": 0.5, "mt": 1, "text": 1, "repeat": 0}
    learnt = {name for name, passes in compose.finetune.model_dump().items() if passes}
    assert learnt == {"interleaved", "cross_lingual", "text"}
    ours = ["answer_noise", "misheard", "unit_dropout", "question_noise", "splice", "excerpt", "earlier_turns"]
    assert not any(getattr(compose, name) for name in [*ours, "listening"])
    assert (first.micro_batch_tokens, second.micro_batch_tokens) == (2 * 1024, 4096)
    trained_on = {key for key, corpus in settings.corpora.items() if corpus.splits == ["train"]}
    assert trained_on == {"mls", "gigaspeech", "wenetspeech", "wenetspeech4tts"}, "no test set of theirs"
    tested_on = {key for key, corpus in settings.corpora.items() if corpus.splits == ["dev", "test"]}
    assert tested_on == {"librispeech", "aishell"}, "and nothing of these is trained on"
    assert (Sampling().top_p, Sampling().temperature) == (0.7, 1.0)
    assert (units_of(settings), settings.align.words_per_chunk, settings.languages) == (4096, 7, ["en", "zh"])


@pytest.mark.parametrize("settings", ["llama3.1-8b", "smollm2-135m"], indirect=True)
def test_models_are_where_they_are_fetched_to(settings: Settings) -> None:
    checkpoint, catalog = settings.text_model.checkpoint, load_catalog(ROOT / "models.yaml")
    assert checkpoint is not None
    assert Path(checkpoint).name in catalog
    assert Path(settings.train_tokenizer.checkpoint or "cosyvoice-300m-25hz").name in catalog
    assert settings.backbone.checkpoint is None and settings.text_model.steps == 0
