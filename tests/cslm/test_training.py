"""What a training learns, step by step, and what becomes of steps that go wrong."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cslm.packing import PackedRows, pack
from cslm.sequences import IGNORE, Sequence, SequenceBuilder
from cslm.training import train
from cslm.training.speed import flops_per_token
from cslm.training.steps import LossNotFinite, OutOfMemory
from cslm.training.zero import gathered
from tests.tiny import TRAINING as CONFIG


@pytest.fixture(scope="module")
def alone(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast],
    few: PackedRows,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[dict[str, float]]:
    """The log of a training whose steps of four rows are one batch each."""
    return _logged(copy.deepcopy(tiny[0]), few, tmp_path_factory.mktemp("alone"), micro_batch_tokens=None)


def _logged(
    model: LlamaForCausalLM, rows: PackedRows, folder: Path, **changes: object
) -> list[dict[str, float]]:
    config = dataclasses.replace(
        CONFIG,
        batch_tokens=512,
        epochs=9.0,
        checkpoint_minutes=1000.0,
        half_precision=False,
        speech_loss=0.7,
    )
    spoken = [*range(model.config.vocab_size - 18, model.config.vocab_size)]
    config = dataclasses.replace(config, **changes)  # type: ignore[arg-type]
    return train(model, rows, config, folder, lambda step, numbers: None, spoken).log


def _same(one: list[dict[str, float]], other: list[dict[str, float]]) -> None:
    assert [entry["step"] for entry in other] == [entry["step"] for entry in one]
    for a, b in zip(one, other, strict=True):
        losses = {name: value for name, value in a.items() if name.startswith("loss")}
        assert {name: b[name] for name in losses} == pytest.approx(losses, abs=1e-5)


@pytest.mark.parametrize(("zero_stage", "tokens"), [(0, 128), (2, 128), (2, 300)])
def test_micro_batches_learn_what_one_batch_learns(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast],
    few: PackedRows,
    alone: list[dict[str, float]],
    tmp_path: Path,
    zero_stage: int,
    tokens: int,
) -> None:
    seen: list[int] = []
    model = copy.deepcopy(tiny[0])
    model.model.register_forward_pre_hook(
        lambda module, given, named: seen.append(named["input_ids"].numel()), with_kwargs=True
    )
    _same(alone, _logged(model, few, tmp_path, zero_stage=zero_stage, micro_batch_tokens=tokens))
    assert seen == [tokens // 128 * 128] * len(seen)


def test_fewer_rows_than_a_step_takes_are_passed_over_as_often_as_asked(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], rows: PackedRows, tmp_path: Path
) -> None:
    three = copy.copy(rows)
    three.manifest = dataclasses.replace(rows.manifest, rows=3)
    model, seen = copy.deepcopy(tiny[0]), list[int]()
    model.model.register_forward_pre_hook(
        lambda module, given, named: seen.append(named["input_ids"].numel()), with_kwargs=True
    )
    config = dataclasses.replace(
        CONFIG, batch_tokens=8 * 128, epochs=10.0, max_steps=None, checkpoint_minutes=1000.0
    )
    trained = train(model, three, config, tmp_path, lambda step, numbers: None)
    figures = trained.figures()
    assert figures["steps"] == 10
    assert figures["tokens"] == 10 * 3 * 128 == sum(seen)


@pytest.fixture(scope="module")
def without_third_step(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast],
    few: PackedRows,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[LlamaForCausalLM, list[dict[str, float]]]:
    """A model whose third step, of one batch, was left out where nothing is shared; the log of its training."""
    model = _broken_at(tiny[0], range(3, 4))
    return model, _logged(model, few, tmp_path_factory.mktemp("third"), zero_stage=0)


@pytest.mark.parametrize(
    ("zero_stage", "offload", "what"),
    [
        (0, None, "loss"),
        (0, None, "gradient"),
        (1, None, "loss"),
        (2, None, "gradient"),
        (2, "optimizer", "gradient"),
        (3, None, "loss"),
        (3, None, "gradient"),
        (3, "weights", "gradient"),
    ],
)
def test_one_bad_micro_batch_leaves_out_the_whole_step(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast],
    few: PackedRows,
    without_third_step: tuple[LlamaForCausalLM, list[dict[str, float]]],
    tmp_path: Path,
    zero_stage: int,
    offload: str | None,
    what: str,
) -> None:
    """The second of four, in step 3: as if the step had been one batch."""
    whole, log = without_third_step
    parts = _broken_at(tiny[0], range(10, 11), what)
    sharing = {"zero_stage": zero_stage, "offload": offload}
    _same(log, _logged(parts, few, tmp_path, micro_batch_tokens=128, **sharing))
    assert sum(entry["skipped_steps"] for entry in log) == 1
    assert [path.name for path in tmp_path.glob("skipped-*")] == ["skipped-step-3-rank-0.safetensors"]
    with gathered(*parts.parameters()):
        for (name, weight), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
            torch.testing.assert_close(other, weight, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_a_rehearsal_leaves_nothing_behind(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast],
    rows: PackedRows,
    few: PackedRows,
    alone: list[dict[str, float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    zero_stage: int,
) -> None:
    monkeypatch.setattr("cslm.training.trainer.REHEARSED", {"cpu"})
    seen: list[torch.Tensor] = []
    model = copy.deepcopy(tiny[0])
    model.model.register_forward_pre_hook(
        lambda module, given, named: seen.append(named["input_ids"]), with_kwargs=True
    )
    rehearsed = _logged(model, few, tmp_path, zero_stage=zero_stage)
    assert len(seen) == 9, "one more than there are steps"
    labelled = [int((rows[n]["labels"] != IGNORE).sum()) for n in range(len(rows))]
    heaviest = rows[labelled.index(max(labelled))]["input_ids"]
    assert torch.equal(seen[0][0], heaviest.repeat(4))
    if zero_stage == CONFIG.zero_stage:
        assert [entry["loss"] for entry in rehearsed] == [entry["loss"] for entry in alone], "to the last bit"
    else:
        _same(alone, rehearsed)


def test_too_little_memory_is_explained_before_the_first_step(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast],
    rows: PackedRows,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cslm.training.trainer.REHEARSED", {"cpu"})
    model = copy.deepcopy(tiny[0])

    def full(module: torch.nn.Module, given: object, made: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("tried to allocate 9 GB")

    model.lm_head.register_forward_hook(full)
    heard: list[int] = []
    told = r"batch of 256 tokens .* cpu.* has: give micro_batch_tokens 128 \(one row\) to 128, gradient.* 9 GB"
    with pytest.raises(OutOfMemory, match=told):
        train(model, rows, CONFIG, tmp_path, lambda step, numbers: heard.append(step))
    assert not heard


def test_what_is_made_again_is_the_same(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], rows: PackedRows, tmp_path: Path
) -> None:
    kept: dict[bool, list[float]] = {}
    for again in (False, True):
        config = dataclasses.replace(CONFIG, half_precision=False, gradient_checkpointing=again)
        model = copy.deepcopy(tiny[0])
        trained = train(model, rows, config, tmp_path / str(again), lambda step, numbers: None)
        kept[again] = [entry["loss"] for entry in trained.log]
        assert model.is_gradient_checkpointing is again
    assert kept[True] == pytest.approx(kept[False], abs=1e-5)


def _broken_at(model: LlamaForCausalLM, steps: range, what: str = "loss") -> LlamaForCausalLM:
    """The model if the arithmetic of these steps (1 is the first) overflows, or its gradient's alone."""
    broken, step = copy.deepcopy(model), itertools.count(1)

    def overflow(module: torch.nn.Module, given: object, made: torch.Tensor) -> torch.Tensor:
        if next(step) not in steps:
            return made
        if what == "loss":
            return made * torch.inf
        made.register_hook(lambda gradient: gradient * torch.inf)
        return made

    broken.lm_head.register_forward_hook(overflow)
    return broken


def test_a_step_without_a_finite_loss_is_left_out(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast],
    rows: PackedRows,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    heard: list[int] = []
    model = _broken_at(tiny[0], range(3, 5))
    trained = train(model, rows, CONFIG, tmp_path, lambda step, numbers: heard.append(step))
    assert trained.figures()["skipped_steps"] == 2
    assert heard == [1, 2, 5, 6, 7, 8]
    assert all(weight.isfinite().all() for weight in model.parameters())
    assert 0 < trained.figures()["loss"] < 10
    file = tmp_path / "skipped-step-3-rank-0.safetensors"
    assert f"note: step 3 was left out: its loss is nan; its batch is {file}" in capsys.readouterr().out
    batch = load_file(file)["input_ids"]
    assert batch.shape == (2, 128)
    assert any(torch.equal(batch[0], torch.as_tensor(rows[n]["input_ids"])) for n in range(len(rows)))


def test_a_training_without_hope_ends(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], rows: PackedRows, tmp_path: Path
) -> None:
    told = (
        r"5 steps in a row, the last one 7, had no finite loss or grad.* best checkpoint is .*checkpoint-[12] "
    )
    with pytest.raises(LossNotFinite, match=told):
        train(_broken_at(tiny[0], range(3, 100)), rows, CONFIG, tmp_path, lambda step, numbers: None)
    assert len(list(tmp_path.glob("skipped-step-*"))) == 5


def test_speech_that_does_not_count_is_not_learned(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], rows: PackedRows, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, epochs=40.0, max_steps=60, checkpoint_minutes=10.0)
    spoken = SequenceBuilder(tiny[1]).unit_ids
    last: dict[float, dict[str, float]] = {}
    for weight in (0.0, 1.0):
        train(
            copy.deepcopy(tiny[0]),
            rows,
            dataclasses.replace(config, speech_loss=weight),
            tmp_path / str(weight),
            lambda _, numbers, weight=weight: last.update({weight: numbers}),  # type: ignore[misc]
            spoken,
        )
    assert last[0.0]["loss.asr.en"] == pytest.approx(last[1.0]["loss.asr.en"], abs=0.5)
    assert last[0.0]["loss.tts.zh"] > last[1.0]["loss.tts.zh"] + 0.5


def test_what_a_unit_speaks_is_learned_in_the_middle_of_the_network(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    builder = SequenceBuilder(tiny[1])
    text = " ".join("abcdefghijklmnop")
    runs = [[(7 * n + 3 * i * i) % 16 for i in range(8)] for n in range(80)]
    sequences = [builder.asr(units, text, "en", [2 * unit for unit in units]) for units in runs]
    pack(iter(sequences), tmp_path / "rows", 128, builder.end_id, seed=1)
    model = copy.deepcopy(tiny[0])
    config = dataclasses.replace(CONFIG, learning_rate=3e-3, epochs=40.0, max_steps=400, checkpoint_minutes=9.0)
    trained = train(model, PackedRows(tmp_path / "rows"), config, tmp_path / "c", lambda step, numbers: None)
    assert trained.log[-1]["loss.listening.en"] < 0.5  # of 2.8 where nothing is known
    first = sequences[0].input_ids.index(builder.speech_ids(runs[0])[1])
    with torch.inference_mode():
        states = model(torch.tensor([sequences[0].input_ids]), output_hidden_states=True).hidden_states
        assert len(states) == 3, "two layers"
        heard = (states[1][0] @ functional.normalize(model.lm_head.weight, dim=-1).T).argmax(-1)
    said = [builder.decode([token]).strip() for token in heard[first + 1 : first + 9].tolist()]
    assert said == ["abcdefghijklmnop"[unit] for unit in runs[0]]


@pytest.fixture
def readings(tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast]) -> list[Sequence]:
    """Written letters that are to be understood as the next ones, which their states are far from; no reply."""
    builder = SequenceBuilder(tiny[1])
    letters = "abcdefghijklmnop"
    tokens = [builder.text_ids(letter)[0] for letter in letters]
    following = dict(zip(tokens, [*tokens[1:], tokens[0]], strict=True))
    read = []
    for n in range(80):
        text = " ".join(letters[(7 * n + 3 * i * i) % 16] for i in range(8))
        sequence = builder.reading(builder.text(text, "yes", "en"))
        understood = {at: following[token] for at, token in sequence.understood.items() if token in following}
        nothing = [IGNORE] * len(sequence.labels)
        read.append(dataclasses.replace(sequence, labels=nothing, understood=understood))
    return read


def understand(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], readings: list[Sequence], folder: Path
) -> LlamaForCausalLM:
    """A model that has learned to understand them."""
    pack(iter(readings), folder / "rows", 128, SequenceBuilder(tiny[1]).end_id, seed=1)
    model = copy.deepcopy(tiny[0])
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # apart from the input's
    config = dataclasses.replace(CONFIG, learning_rate=1e-2, epochs=40.0, max_steps=150, checkpoint_minutes=9.0)
    train(model, PackedRows(folder / "rows"), config, folder / "checkpoints", lambda step, numbers: None)
    return model


def test_a_word_that_is_read_comes_near_its_embedding_and_not_nearer_than_asked(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast],
    readings: list[Sequence],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    near = {}
    for alike in (0.4, 1.0):
        monkeypatch.setattr("cslm.training.loss.ALIKE", alike)
        model = understand(tiny, readings, tmp_path / str(alike))
        places, tokens = (list(each) for each in zip(*readings[0].understood.items(), strict=True))
        with torch.inference_mode():
            states = model(torch.tensor([readings[0].input_ids]), output_hidden_states=True).hidden_states[1]
            own = functional.cosine_similarity(states[0, places], model.lm_head.weight[tokens], dim=-1)
        near[alike] = own.mean().item()
    assert near[0.4] < 0.85
    assert near[1.0] > 0.95


def test_the_words_do_not_move_to_be_understood(
    tiny: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], readings: list[Sequence], tmp_path: Path
) -> None:
    model = understand(tiny, readings, tmp_path)
    torch.testing.assert_close(model.lm_head.weight, tiny[0].lm_head.weight, rtol=0, atol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_operations_of_a_token_are_those_that_torch_counts(tied: bool) -> None:
    size = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=500, tie_word_embeddings=tied, **size))
    tokens = torch.arange(8)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, labels=tokens).loss.backward()
    assert flops_per_token(model) * tokens.numel() == pytest.approx(counter.get_total_flops(), rel=0.05)
