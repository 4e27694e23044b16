"""Ranks are refused at the door where they cannot work, and a training says whether another try goes on."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from pathlib import Path

import pytest
import yaml

from components.settings import Training
from components.stage import StageFailed
from components.train import (
    check_memory,
    check_ranks,
    memory_here,
    open_checkpoint,
    train_phase,
    training_config,
)
from cslm.generation import SpeechLanguageModel
from cslm.packing import PackedRows, pack
from cslm.sequences import SequenceBuilder
from tests import tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture
def rows(tmp_path: Path) -> PackedRows:
    builder = SequenceBuilder(tiny.make()[1])
    sequences = (builder.asr([1, 2, 3], "What is", "en") for _ in range(40))
    pack(sequences, tmp_path / "rows", 128, builder.end_id, seed=1)
    return PackedRows(tmp_path / "rows")


def test_a_step_must_be_shared_evenly(rows: PackedRows) -> None:
    config = training_config(Training(learning_rate=1e-3, batch_tokens=512), seed=1)
    check_ranks("pretrain", config, rows, 4)
    told = (
        r"pretrain: batch_tokens 512 are 4 rows of 128, which 3 ranks cannot share: give batch_tokens "
        r"384 \(3 rows\) or 768 \(6 rows\), or 2 ranks"
    )
    with pytest.raises(StageFailed, match=told):
        check_ranks("pretrain", config, rows, 3)
    for tokens in (384, 768):
        check_ranks("pretrain", dataclasses.replace(config, batch_tokens=tokens), rows, 3)
    small = dataclasses.replace(config, batch_tokens=100)
    with pytest.raises(StageFailed, match=r"are 1 rows of 128, which 2 ranks .* 256 \(2 rows\), or 1 ranks"):
        check_ranks("pretrain", small, rows, 2)
    rows.manifest = dataclasses.replace(rows.manifest, rows=3)
    told = (
        r"512 are 4 rows of 128, and there are 3, which 2 ranks .* give batch_tokens 256 \(2 rows\), or 1 ranks"
    )
    with pytest.raises(StageFailed, match=told):
        check_ranks("pretrain", config, rows, 2)


def test_a_micro_batch_has_room_for_a_row(rows: PackedRows) -> None:
    config = training_config(Training(learning_rate=1e-3, batch_tokens=512, micro_batch_tokens=127), seed=1)
    with pytest.raises(StageFailed, match=r"micro_batch_tokens 127 are less than one row: give 128 or more"):
        check_ranks("pretrain", config, rows, 1)


def test_each_rank_needs_a_gpu_where_there_are_some(rows: PackedRows, monkeypatch: pytest.MonkeyPatch) -> None:
    config = training_config(Training(learning_rate=1e-3, batch_tokens=512), seed=1)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    check_ranks("finetune", config, rows, 2)
    with pytest.raises(StageFailed, match=r"finetune: 4 ranks need as many GPUs, and there are 2"):
        check_ranks("finetune", config, rows, 4)
    nodes = {"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "node-0", "MASTER_PORT": "29400"}
    for variable, value in nodes.items():
        monkeypatch.setenv(f"PET_{variable}", value)
    monkeypatch.setenv("CSLM_JOB", "job.json")
    check_ranks("finetune", config, rows, 4)
    with pytest.raises(StageFailed, match=r"finetune: 1 ranks cannot be shared among 2 nodes"):
        check_ranks("finetune", config, rows, 1)


def test_a_training_that_is_told_to_end_ends_with_the_code_that_airflow_tries_again(
    rows: PackedRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What Airflow makes of it: tests/dags/test_run.py, tests/infra/test_tries.py."""
    model, tokenizer = tiny.make()
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "work" / "backbone")
    shutil.copytree(tmp_path / "rows", tmp_path / "work" / "train" / "pretrain")
    parameters = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
    parameters["pretrain"] |= {"batch_tokens": 512, "epochs": 4}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(parameters), "utf-8")
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CSLM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("components.train.use_deepspeed_here", lambda: None)  # what other tests have compiled
    heard: list[int] = []

    def listen(step: int, numbers: dict[str, float]) -> None:
        heard.append(step)
        if len(heard) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("components.train.log_to", lambda stage: listen)
    phase = ("pretrain", Path("work/train/pretrain"), Path("work/backbone"), Path("work/base"))
    with pytest.raises(SystemExit) as ended:
        train_phase(*phase)
    assert ended.value.code == 75
    assert "it was told to end (SIGTERM), and did after step" in capsys.readouterr().err
    assert not Path("work/base").exists()
    before = len(heard)
    train_phase(*phase)
    assert heard[before] > heard[before - 1], "it goes on, and does not begin anew"
    assert SpeechLanguageModel.load(Path("work/base")).longest == 128, "what it is asked may not be longer"


def test_a_checkpoint_that_memory_has_no_room_for_is_refused_before_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the container is killed without a word. What is allowed is the container's, or what is free."""
    model, tokenizer = tiny.make()
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    needed = 4 * model.num_parameters()
    monkeypatch.setattr("components.train.memory_here", lambda: needed)
    open_checkpoint(tmp_path)
    told = rf"has {model.num_parameters():,} parameters: 2 x .* GiB in 32 bits, .* raise `memory` in `meta`"
    with pytest.raises(StageFailed, match=told):
        check_memory(tmp_path, copies=2)
    limit = tmp_path / "memory.max"
    free = memory_here(limit)
    assert free > 0
    limit.write_text("1048576\n", "utf-8")
    assert memory_here(limit) == 1048576
    limit.write_text("max\n", "utf-8")
    assert memory_here(limit) > 1048576
