"""A training that ends early goes on to the same weights, and keeps its best checkpoint."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cslm.packing import PackedRows
from cslm.training import train
from cslm.training.checkpoints import last_whole_checkpoint
from cslm.training.preemption import Preempted
from tests.tiny import TRAINING as CONFIG


class Killed(Exception):
    """Stands for SIGKILL: nothing of the training runs after it."""


@pytest.mark.parametrize(
    ("optimizer", "zero_stage", "micro_batch_tokens"), [("adamw", 2, 128), ("muon", 0, None)]
)
def test_a_killed_training_continues_to_the_same_weights(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast],
    rows: PackedRows,
    tmp_path: Path,
    optimizer: str,
    zero_stage: int,
    micro_batch_tokens: int | None,
) -> None:
    config = dataclasses.replace(
        CONFIG, optimizer=optimizer, zero_stage=zero_stage, micro_batch_tokens=micro_batch_tokens
    )
    environment = dict(os.environ)
    losses: dict[int, dict[str, float]] = {}
    undisturbed = copy.deepcopy(tiny[0])
    train(undisturbed, rows, config, tmp_path / "a", lambda step, numbers: losses.update({step: numbers}))
    assert {"loss", "loss.asr.en", "loss.tts.zh", "tokens_per_second", "mfu"} <= set().union(*losses.values())
    assert losses[8]["loss"] < losses[1]["loss"]
    assert 0 < losses[8]["mfu"] < 1
    assert dict(os.environ) == environment, "a program started later would join this training"

    def die(step: int, numbers: dict[str, float]) -> None:
        if step == 6:
            raise Killed

    with pytest.raises(Killed):
        train(copy.deepcopy(tiny[0]), rows, config, tmp_path / "b", die)
    half_written = tmp_path / "b" / "checkpoint-7"
    half_written.mkdir()
    last = last_whole_checkpoint(tmp_path / "b")
    assert last is not None and not half_written.exists()
    again: list[int] = []
    continued = copy.deepcopy(tiny[0])
    trained = train(continued, rows, config, tmp_path / "b", lambda step, numbers: again.append(step))
    assert [entry["step"] for entry in trained.log] == list(range(1, 9)), "the steps before the end too"
    assert again == list(range(int(last.rsplit("-", 1)[1]) + 1, 9))
    for name, weight in undisturbed.state_dict().items():
        torch.testing.assert_close(continued.state_dict()[name], weight, rtol=0, atol=1e-6, msg=name)


def test_it_goes_on_in_the_middle_of_an_epoch_with_the_numbers_that_were_to_be_drawn(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], few: PackedRows, tmp_path: Path
) -> None:
    def noisy() -> LlamaForCausalLM:
        model = copy.deepcopy(tiny[0])
        model.model.embed_tokens.register_forward_hook(lambda _, __, made: made + torch.randn_like(made) / 10)
        return model

    def die(step: int, numbers: dict[str, float]) -> None:
        if step == 7:
            raise Killed

    steps = CONFIG.max_steps
    assert steps == 8 and len(few) // 4 == 4, "it dies in the second of two epochs"
    config = dataclasses.replace(CONFIG, batch_tokens=512, epochs=2.0, half_precision=False)
    undisturbed = train(noisy(), few, config, tmp_path / "a", lambda step, numbers: None)
    with pytest.raises(Killed):
        train(noisy(), few, config, tmp_path / "b", die)
    heard: list[int] = []
    trained = train(noisy(), few, config, tmp_path / "b", lambda step, numbers: heard.append(step))
    assert heard[0] in (6, 7)
    assert [entry["loss"] for entry in trained.log] == [entry["loss"] for entry in undisturbed.log]


def test_a_training_that_is_told_to_end_saves_first(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], rows: PackedRows, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, checkpoint_minutes=1000.0)
    undisturbed, told = copy.deepcopy(tiny[0]), copy.deepcopy(tiny[0])
    train(undisturbed, rows, config, tmp_path / "a", lambda step, numbers: None)

    def end(step: int, numbers: dict[str, float]) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    ends_at_once = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match=r"after step [34] of 8: the same command goes on"):
        train(told, rows, config, tmp_path / "b", end)
    assert signal.getsignal(signal.SIGTERM) is ends_at_once
    continued, heard = copy.deepcopy(tiny[0]), list[int]()
    train(continued, rows, config, tmp_path / "b", lambda step, numbers: heard.append(step))
    assert heard[0] in (4, 5)
    for name, weight in undisturbed.state_dict().items():
        torch.testing.assert_close(continued.state_dict()[name], weight, rtol=0, atol=1e-6, msg=name)


def test_the_best_checkpoint_stays_when_the_loss_goes_up(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], rows: PackedRows, tmp_path: Path
) -> None:
    model, step = copy.deepcopy(tiny[0]), itertools.count(1)

    def forget(module: torch.nn.Module, given: object, made: torch.Tensor) -> torch.Tensor:
        return made if next(step) <= 3 else made * 0  # every token is as probable as any other

    model.lm_head.register_forward_hook(forget)
    trained = train(model, rows, CONFIG, tmp_path, lambda step, numbers: None)
    assert min(trained.log, key=lambda entry: entry["loss"])["step"] == 3
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{n}" for n in (3, 6, 7)}
    state = json.loads((tmp_path / "checkpoint-7" / "trainer_state.json").read_text("utf-8"))
    assert state["best_global_step"] == 3
