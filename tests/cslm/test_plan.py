"""The plan's figures against measured memory, transformers' own counts and published ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from cslm.plan.__main__ import main
from cslm.plan.costs import parameters, storage, training
from cslm.plan.memory import memory
from cslm.plan.profiles import DEVICES, LLAMA_8B, PROFILES, SMOLLM2, Phase
from cslm.plan.recipe import recipe

ROOT = Path(__file__).parents[2]
LAYER = {"hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 4, "num_key_value_heads": 2}
SHAPES = {
    "weights": LAYER
    | {"vocab_size": 500, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8}
    | {"batch": 1, "length": 128, "document": 64, "labelled": 32, "checkpointing": 0},
    "activations": LAYER
    | {"vocab_size": 500, "num_hidden_layers": 10}
    | {"batch": 6, "length": 512, "document": 128, "labelled": 64, "checkpointing": 0},
    "logits": LAYER
    | {"vocab_size": 12_000, "num_hidden_layers": 1}
    | {"batch": 4, "length": 512, "document": 128, "labelled": 512, "checkpointing": 0},
    "made again": LAYER
    | {"vocab_size": 500, "num_hidden_layers": 4}
    | {"batch": 24, "length": 512, "document": 128, "labelled": 64, "checkpointing": 1},
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """The most memory that a training of each shape took, in bytes."""
    path = tmp_path_factory.mktemp("shapes") / "shapes.json"
    path.write_text(json.dumps(SHAPES), "utf-8")
    # Freed memory goes back at once, so that what was needed is not mixed with what malloc kept.
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(Path(__file__).with_name("measured_memory.py")), str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    taken: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return taken


@pytest.mark.parametrize("name", SHAPES)
def test_memory_is_what_a_training_takes(name: str, measured: dict[str, int]) -> None:
    shape = dict(SHAPES[name])
    batch, length, labelled = shape.pop("batch"), shape.pop("length"), shape.pop("labelled")
    again = bool(shape.pop("checkpointing"))
    del shape["document"]
    config = LlamaConfig(**shape)
    planned = memory(
        config,
        parameters(config)[0],
        tokens=batch * length,
        labelled=batch * labelled,
        half=False,
        checkpointing=again,
    )
    assert measured[name] > 150e6, "too small to be told from noise"
    assert planned.peak == pytest.approx(measured[name], rel=0.15)


def test_parameters_are_those_that_are_published() -> None:
    """Llama-3.1-8B: 8,030,261,248 (its model card); four markers and 4,096 units are new, in two matrices."""
    assert parameters(LLAMA_8B)[0] == 8_030_261_248
    assert parameters(PROFILES["llama3.1-8b"].config)[0] == 8_030_261_248 + 2 * 4100 * 4096
    assert parameters(SMOLLM2)[0] == 134_515_008  # of the hub's page of HuggingFaceTB/SmolLM2-135M-Instruct


def test_the_plan_of_the_paper_is_the_papers() -> None:
    """Method: 288 sequences of 1,024, then 32 of 4,096, an epoch each."""
    phases = PROFILES["llama3.1-8b"].phases
    assert [(each.rows, each.length, each.epochs) for each in phases] == [(288, 1024, 1.0), (32, 4096, 1.0)]


def test_a_profile_that_is_changed_changes_the_plan(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "params.yaml").write_text("compose: {length: 512}\npretrain: {batch_tokens: 2048}\n", "utf-8")
    (tmp_path / "profiles/mine.yaml").write_text("pretrain: {batch_tokens: 8192, epochs: 3}\n", "utf-8")
    planned = recipe("mine", "pretrain", tmp_path)
    assert (planned.rows, planned.length, planned.epochs) == (16, 512, 3)
    assert recipe("sample", "pretrain", tmp_path).rows == 4
    with pytest.raises(ValueError, match=r"profile other cannot be read: .*other\.yaml"):
        recipe("other", "pretrain", tmp_path)
    with pytest.raises(ValueError, match=r"mine\.yaml: compose\.length and finetune\.batch_tokens are needed"):
        recipe("mine", "finetune", tmp_path)


def test_operations_are_those_that_torch_counts() -> None:
    """Forward and backward of one row; of attention's scores torch counts also those of later tokens."""
    config = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager")
    tokens = torch.arange(128)[None]
    with FlopCounterMode(display=False) as counter:
        model(tokens, labels=tokens).loss.backward()
    profile = replace(PROFILES["sample"], text_model=config)
    phase = Phase(name="one", tokens=128, rows=1, length=128)
    planned = training(profile, phase, DEVICES["h100"], 1, False)
    scores = 6.0 * 2 * 64 * 128 * 128
    assert planned.flops + scores == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_the_sample_takes_as_long_as_it_did() -> None:
    """By the README's run on two cores, start and end of the stages included."""
    shown = (ROOT / "README.md").read_text("utf-8")
    took = [int(s) for s in re.findall(r"(?:pretrain|finetune) \.+ (\d+) s", shown)]
    sample = PROFILES["sample"]
    hours = [training(sample, phase, DEVICES["2-cores"], 1, False).hours for phase in sample.phases]
    assert [3600 * each for each in hours] == pytest.approx(took, rel=0.15)


def test_rows_that_gpus_cannot_share_leave_some_without_work() -> None:
    plan = PROFILES["llama3.1-8b"]
    finetune = training(plan, plan.phases[1], DEVICES["h100"], 24, False)
    assert (finetune.gpus, finetune.micro_batches, finetune.micro_tokens) == (16, 2, 4096)


def test_the_papers_micro_batches_are_planned() -> None:
    """Phase 1 in its released recipe: micro batches of 2 rows, 6 of them on each of 24 GPUs."""
    plan = PROFILES["llama3.1-8b"]
    pretrain = training(plan, plan.phases[0], DEVICES["h100"], 24, False)
    assert (pretrain.gpus, pretrain.micro_batches, pretrain.micro_tokens) == (24, 6, 2048)


def test_zero_shares_as_its_paper_says() -> None:
    """ZeRO (arXiv 1910.02054), figure 1: 7.5 B parameters, 64 GPUs, K = 12: 31.4, 16.6 and 1.9 GB.

    What the figure leaves out is not asked: buckets, gradients in 32 bits, the work of a step.
    """
    config = PROFILES["llama3.1-8b"].config
    for stage, published in ((1, 31.4), (2, 16.6), (3, 1.9)):
        need = memory(config, 7_500_000_000, tokens=1, labelled=1, ranks=64, stage=stage)
        in_32_bits = 4 * 7.5e9 / 64
        held = need.weights + need.optimizer + need.gradients - in_32_bits
        assert held / 1e9 == pytest.approx(published, abs=0.06)


def test_gradients_that_wait_for_the_next_micro_batch_are_counted() -> None:
    """In bfloat16: of all parameters with ZeRO 1, of a rank's share from ZeRO 2 on."""
    config = PROFILES["llama3.1-8b"].config
    for stage, kept in ((1, 16.0), (2, 2.0), (3, 2.0)):
        once, again = (
            memory(
                config, 8_000_000_000, tokens=8192, labelled=8192, ranks=8, stage=stage, micro_batches=n
            ).peak
            for n in (1, 2)
        )
        assert (again - once) / 1e9 == pytest.approx(kept)


def test_storage_is_mostly_speech() -> None:
    """LibriSpeech: 960 h are 60 GB of FLAC (openslr.org/12)."""
    held = storage(PROFILES["llama3.1-8b"], half=True)
    assert held["speech, twice"] == pytest.approx(2 * 77_000 / 960 * 60e9, rel=0.05)
    assert sum(held.values()) < 1.2 * held["speech, twice"]


def test_the_command_says_what_fits_and_what_it_assumes(capsys: pytest.CaptureFixture[str]) -> None:
    main("llama3.1-8b", gpus=24, gpu="h100", price=None, utilisation=None)
    said = " ".join(capsys.readouterr().out.split())
    assert "8,063,848,448 parameters" in said
    assert "Fits: ZeRO 2, 3; with gradient checkpointing ZeRO 1, 2, 3." in said
    for part in ("Assumed", "arXiv 2604.11096", "data sheet", "RunPod", "on no GPU", "tokenisation"):
        assert part in said


@pytest.mark.parametrize(("profile", "gpus", "gpu"), [("llama3.1-8b", 24, "h100"), ("sample", 1, "2-cores")])
def test_all_figures_can_be_read_on_a_narrow_screen(
    profile: str, gpus: int, gpu: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main(profile, gpus=gpus, gpu=gpu, price=None, utilisation=None)
    said = capsys.readouterr().out
    assert "…" not in said, "a figure was cut"
    assert said.count("weights  ") == said.count("peak  ") == 2, "without and with gradient checkpointing"


@pytest.mark.parametrize(
    ("profile", "gpu", "allowed"),
    [("llama4", "h100", "llama3.1-8b, smollm2-135m, sample"), ("sample", "v100", "h100, h200")],
)
def test_unknown_names_are_refused_with_those_that_exist(profile: str, gpu: str, allowed: str) -> None:
    with pytest.raises(SystemExit, match=f"there is no such .*{allowed}"):
        main(profile, gpus=1, gpu=gpu, price=None, utilisation=None)


def test_what_is_not_in_the_sum_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    stages = (ROOT / "dvc.yaml").read_text("utf-8")
    main("llama3.1-8b", gpus=24, gpu="h100", price=None, utilisation=None)
    said = " ".join(capsys.readouterr().out.split())
    assert "Tokenisation and both phases, not the other stages: " in said
    _, _, named = said.partition("not counted in time and money: ")
    counted = {"tokenize", "pretrain", "finetune"}
    for stage in set(re.findall(r"^  (\w+):$", stages, re.MULTILINE)) - counted:
        assert re.search(rf"\b{stage}\b", named), stage
    assert "1.8 and 5.6 h for 100 M rows" in named, (
        "at the 15,867 and 4,987 rows a second of benchmarks/speed.md"
    )
