"""A real pretrained Llama out of a package learns speech of the sample corpus (profile smollm2-135m)."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from components.backbone.__main__ import main as backbone
from components.fetch.__main__ import fetch
from components.fetch.catalog import load_catalog
from components.fetch.packages import FetchFailed
from components.settings import Training
from components.text_model.__main__ import main as text_model
from components.train import training_config, use_deepspeed_here
from cslm.packing import PackedRows, pack
from cslm.sequences import Sequence, SequenceBuilder
from cslm.shards import read_rows
from cslm.tokenizer import SpeechTokenizer
from cslm.tokenizer.corpus import tokenize
from cslm.training import train

pytestmark = pytest.mark.timeout(1800)
ROOT = Path(__file__).parents[2]
PROFILE = yaml.safe_load((ROOT / "profiles/smollm2-135m.yaml").read_text("utf-8"))
PUBLISHED = 134_515_008
"""Parameters of HuggingFaceTB/SmolLM2-135M-Instruct, as the hub counts them."""
VOCABULARY = 49_152
UTTERANCES = 32
LENGTH = 256
STEPS = 8


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `python -m components.fetch smollm2-135m` makes."""
    folder = tmp_path_factory.mktemp("models") / "smollm2-135m"
    try:
        fetch("smollm2-135m", load_catalog(ROOT / "models.yaml")["smollm2-135m"], folder)
    except FetchFailed as error:
        pytest.skip(f"the package cannot be had: {error}")
    return folder


@pytest.fixture(scope="module")
def workspace(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the stages text_model and backbone did their work."""
    folder = tmp_path_factory.mktemp("workspace")
    params = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
    params |= {name: PROFILE[name] for name in ("profile", "text_model", "backbone")}
    params["text_model"] |= {"checkpoint": str(published)}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
    shutil.copy(ROOT / "dvc.yaml", folder)
    shutil.copytree(ROOT / "models/tokenizer", folder / "work/tokenizer")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CSLM_HOME", str(folder / "var"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        text_model()
        backbone()
        yield folder


def opened(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_it_knows_what_it_knew(workspace: Path) -> None:
    """Unpacked from 4 bits it answers; with units in its vocabulary old tokens have the same logits."""
    text, tokenizer = opened(workspace / "work/text_model")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    asked = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    answer = text.generate(**asked, do_sample=False, max_new_tokens=10)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."

    model, tokenizer = opened(workspace / "work/backbone")
    units = SpeechTokenizer.load(workspace / "work/tokenizer").units
    assert model.num_parameters() == PUBLISHED + (units + 4) * model.config.hidden_size
    assert len(tokenizer) == model.config.vocab_size == VOCABULARY + units + 4
    with torch.inference_mode():
        before, after = (each(**asked).logits[..., :VOCABULARY] for each in (text, model))
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def sequences(builder: SequenceBuilder, tokenizer: SpeechTokenizer) -> Iterator[Sequence]:
    """Speech to text and text to speech, of some utterances of the sample corpus."""
    rows = itertools.islice(read_rows(ROOT / "data/sample/speech", splits=["train"]), UTTERANCES)
    for row in tokenize(tokenizer, ({**row, "speed": 1.0} for row in rows), 60.0):
        yield builder.asr(row["units"], row["text"], row["language"])
        yield builder.tts(row["text"], row["units"], row["language"])


def test_some_steps_on_the_sample_corpus_lower_its_loss(workspace: Path, tmp_path: Path) -> None:
    use_deepspeed_here()
    model, tokenizer = opened(workspace / "work/backbone")
    builder = SequenceBuilder(tokenizer)
    heard = sequences(builder, SpeechTokenizer.load(workspace / "work/tokenizer"))
    pack(heard, tmp_path / "rows", LENGTH, builder.end_id, seed=1)
    rows = PackedRows(tmp_path / "rows")
    small = {"batch_tokens": 2 * LENGTH, "epochs": 100.0, "max_steps": STEPS, "checkpoint_minutes": 60.0}
    config = training_config(Training(**PROFILE["pretrain"] | small), seed=1)
    trained = train(model, rows, config, tmp_path / "checkpoints", lambda step, numbers: None, builder.unit_ids)
    losses = [entry["loss"] for entry in trained.log]
    print(f"losses {[round(loss, 2) for loss in losses]}, {trained.figures()}")
    assert trained.figures()["skipped_steps"] == 0
    assert losses[-1] < 0.9 * losses[0]
