"""What the model card says of the parts that a version is made of; test_register.py has the whole of a card."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from components.fetch.catalog import load_catalog
from components.register.card import model_card
from components.settings import Settings
from tests.components.test_register import PARAMS

ROOT = Path(__file__).parents[2]
EVALUATION = {"asr": {"en": {"wer": 0.0312, "n": 100}}}


def test_the_card_names_the_licences_of_bases_and_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    bases = {"text_model": {"checkpoint": "models/llama3.1-8b"}, "backbone": {"checkpoint": "models/cslm"}}
    settings = Settings.model_validate(PARAMS | bases)
    judged = EVALUATION | {"dnsmos": {"reference": {"en": {"mean": 3.2}}}}
    card = model_card(settings, {}, judged, {}, load_catalog(ROOT / "models.yaml"))
    assert "| text model | models/llama3.1-8b | Llama 3.1 Community License |" in card
    [shipped] = [line for line in card.splitlines() if line.startswith("| language model | models/cslm, ")]
    assert "trained by this repository" in shipped
    assert "not stated yet; trained on speech by Kokoro-82M (Apache-2.0) |" in shipped
    judges = card.partition("Measured with, but not made of:")[2]
    assert [line.split(" | ")[0] for line in judges.splitlines() if line.startswith("| ")][1:] == [
        "| whisper-base-ct2",
        "| dnsmos",
        "| resemblyzer",
    ]
    settings = Settings.model_validate(
        PARAMS | {"train_decoder": {"steps": 1, "vocoder_steps": 1}, "text_model": {"steps": 1}}
    )
    assert "trained from random ones" in model_card(settings, {}, EVALUATION, {}, {})


def test_the_card_names_the_version_that_was_continued_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"md5": "abc.dir", "path": "model", "desc": "that of cslm version 3"}
    pointer = {"outs": [told | {"meta": {"license": "those in the model card of cslm version 3"}}]}
    monkeypatch.chdir(tmp_path)
    Path("models/registered").mkdir(parents=True)
    Path("models/registered/model.dvc").write_text(yaml.safe_dump(pointer), "utf-8")
    settings = Settings.model_validate(PARAMS | {"backbone": {"checkpoint": "models/registered/model"}})
    card = model_card(settings, {}, EVALUATION, {}, load_catalog(ROOT / "models.yaml"))
    assert (
        "| language model | models/registered/model, that of cslm version 3 | "
        "those in the model card of cslm version 3 |" in card
    )
