"""Several real ranks learn what one learns, step by step; on one machine or on two."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from transformers import PreTrainedModel

from cslm.packing import PackedRows, pack
from cslm.row_store import RowSource, RowStore, StoreAway
from cslm.sequences import SequenceBuilder
from cslm.training import TrainingConfig
from cslm.training import ranks as ranks_of_training
from cslm.training.checkpoints import OtherRanks
from cslm.training.preemption import Preempted
from cslm.training.ranks import PREEMPTED, Job, RanksFailed, train_on_ranks
from tests import tiny

STEPS = 6
Losses = dict[str, float]
Learned = Callable[..., list[Losses]]
CONFIG = dataclasses.replace(
    tiny.TRAINING,
    epochs=10.0,
    max_steps=STEPS,
    batch_tokens=512,
    weight_decay=0.01,
    speech_loss=0.5,
    half_precision=False,
)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("ranks")
    model, tokenizer = tiny.make()
    builder = SequenceBuilder(tokenizer)
    texts = ["What is", "the capital", "of France?"]
    sequences = [
        builder.asr([(7 * n + i) % 16 for i in range(3 + n % 5)], texts[n % 3], "en") for n in range(120)
    ]
    sequences += [builder.tts("法国", [n % 16, 5], "zh") for n in range(90)]
    pack(iter(sequences), folder / "rows", 128, builder.end_id, seed=1)
    store = RowStore(f"file://{folder}/store")
    pack(iter(sequences), folder / "stored", 128, builder.end_id, seed=1, store=store)
    model.save_pretrained(folder / "start")
    start, rows, checkpoints, result = (folder / name for name in ("start", "rows", "checkpoints", "result"))
    return Job(start, rows, None, checkpoints, result, CONFIG, builder.unit_ids)


def _losses(job: Job, folder: Path, ranks: int, **changes: object) -> list[Losses]:
    folder.mkdir()
    config = dataclasses.replace(job.config, **changes)  # type: ignore[arg-type]
    mine = dataclasses.replace(job, checkpoints=folder / "checkpoints", result=folder / "result", config=config)
    heard: list[Losses] = []
    model, trained = train_on_ranks(ranks, mine, lambda step, numbers: heard.append(numbers))
    assert [entry["step"] for entry in trained.log] == list(range(1, STEPS + 1))
    assert (folder / "checkpoints" / f"checkpoint-{STEPS - 1}" / "whole").exists()
    return [*heard, {"loss": _loss(model, PackedRows(job.rows, job.source))}]


def _loss(model: PreTrainedModel, rows: PackedRows) -> float:
    """Of a trained model, on a row."""
    row = torch.as_tensor(rows[0]["input_ids"])[None]
    with torch.inference_mode():
        return float(model(input_ids=row, labels=row).loss)


@pytest.fixture(scope="module")
def learned(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Learned:
    """What so many ranks log with such settings when nothing disturbs them; all tests share one training."""

    @functools.cache
    def losses(ranks: int, config: TrainingConfig) -> list[Losses]:
        return _losses(dataclasses.replace(job, config=config), tmp_path_factory.mktemp("ranks") / "job", ranks)

    return lambda ranks, **changes: losses(ranks, dataclasses.replace(job.config, **changes))


@pytest.fixture(scope="module")
def alone(learned: Learned) -> list[Losses]:
    return learned(1)


@pytest.fixture(scope="module")
def together(learned: Learned) -> list[Losses]:
    return learned(2)


def test_two_ranks_learn_what_one_learns(alone: list[Losses], together: list[Losses]) -> None:
    _same(alone, together)


@pytest.mark.parametrize(("ranks", "zero_stage"), [(2, 0), (4, 0), (2, 1), (4, 1), (4, 2), (2, 3), (4, 3)])
def test_so_it_is_whatever_they_share(
    learned: Learned, alone: list[Losses], ranks: int, zero_stage: int
) -> None:
    _same(alone, learned(ranks, zero_stage=zero_stage))


def _same(alone: list[Losses], several: list[Losses]) -> None:
    for one, other in zip(alone, several, strict=True):
        for name in ("loss", "loss.asr.en", "loss.tts.zh"):
            assert (name in other) is (name in one)
            assert other.get(name, 0) == pytest.approx(one.get(name, 0), abs=1e-5), name


def test_so_it_is_with_rows_from_a_store(job: Job, alone: list[Losses], tmp_path: Path) -> None:
    store, kept = job.rows.with_name("store"), tmp_path / "kept"
    stored = dataclasses.replace(
        job, rows=job.rows.with_name("stored"), source=RowSource(f"file://{store}", str(kept))
    )
    _same(alone, _losses(stored, tmp_path / "ranks", 2))
    shutil.rmtree(kept)  # what the disk had room for
    [shard] = store.iterdir()
    shard.rename(tmp_path / "elsewhere")
    with pytest.raises(RanksFailed, match=r"rank [01] of 2 has ended with an error, which stands above"):
        _losses(stored, tmp_path / "without", 2)
    shard.mkdir()  # as a volume that does not work: it is there, and cannot be read
    with pytest.raises(StoreAway, match="the store of packed rows"):
        _losses(stored, tmp_path / "away", 2)
    shard.rmdir()
    (tmp_path / "elsewhere").rename(shard)


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_so_it_is_with_micro_batches(learned: Learned, alone: list[Losses], zero_stage: int) -> None:
    _same(alone, learned(2, zero_stage=zero_stage, micro_batch_tokens=128))


@pytest.mark.parametrize(("zero_stage", "what"), [(2, "optimizer"), (3, "optimizer"), (3, "weights")])
def test_so_it_is_with_what_lies_elsewhere(
    learned: Learned, alone: list[Losses], zero_stage: int, what: str
) -> None:
    _same(alone, learned(2, zero_stage=zero_stage, offload=what))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_costs_nothing_but_time(
    job: Job, together: list[Losses], tmp_path: Path, rank: int
) -> None:
    def kill(step: int, numbers: Losses) -> None:
        if step == STEPS // 2:
            _ranks_at_work()[rank].kill()

    broken = dataclasses.replace(job, checkpoints=tmp_path / "checkpoints", result=tmp_path / "broken")
    with pytest.raises(RanksFailed, match=f"rank {rank} of 2 was killed by signal 9"):
        train_on_ranks(2, broken, kill)
    heard: list[int] = []
    again = dataclasses.replace(broken, result=tmp_path / "again")
    _, trained = train_on_ranks(2, again, lambda step, numbers: heard.append(step))
    assert heard[0] > 1, "it began anew"
    assert [entry["loss"] for entry in trained.log] == [entry["loss"] for entry in together[:-1]]


@pytest.mark.parametrize(("zero_stage", "offload"), [(0, None), (3, None), (3, "weights")])
def test_so_it_is_whatever_they_share_when_one_is_killed(
    job: Job, learned: Learned, tmp_path: Path, zero_stage: int, offload: str | None
) -> None:
    def kill(step: int, numbers: Losses) -> None:
        if step == STEPS // 2:
            _ranks_at_work()[1].kill()

    config = dataclasses.replace(job.config, zero_stage=zero_stage, offload=offload)
    undisturbed = learned(2, zero_stage=zero_stage, offload=offload)
    mine = dataclasses.replace(
        job, checkpoints=tmp_path / "checkpoints", result=tmp_path / "broken", config=config
    )
    with pytest.raises(RanksFailed, match="rank 1 of 2 was killed by signal 9"):
        train_on_ranks(2, mine, kill)
    heard: list[int] = []
    again = dataclasses.replace(mine, result=tmp_path / "again")
    _, trained = train_on_ranks(2, again, lambda step, numbers: heard.append(step))
    assert heard[0] > 1, "it began anew"
    assert [entry["loss"] for entry in trained.log] == [entry["loss"] for entry in undisturbed[:-1]]


@pytest.mark.parametrize(("zero_stage", "ranks"), [(0, (2, 4)), (1, (2, 1)), (2, (4, 2))])
def test_another_number_of_ranks_goes_on_with_the_same_losses(
    job: Job, alone: list[Losses], tmp_path: Path, zero_stage: int, ranks: tuple[int, int]
) -> None:
    config = dataclasses.replace(job.config, zero_stage=zero_stage)
    mine = dataclasses.replace(
        job, checkpoints=tmp_path / "checkpoints", result=tmp_path / "broken", config=config
    )

    def kill(step: int, numbers: Losses) -> None:
        if step == STEPS // 2:
            _ranks_at_work()[0].kill()

    with pytest.raises(RanksFailed, match="was killed by signal 9"):
        train_on_ranks(ranks[0], mine, kill)
    heard: list[int] = []
    again = dataclasses.replace(mine, result=tmp_path / "again")
    model, trained = train_on_ranks(ranks[1], again, lambda step, numbers: heard.append(step))
    assert heard[0] > 1, "it began anew"
    _same(alone, [*trained.log, {"loss": _loss(model, PackedRows(job.rows))}])


def test_ranks_that_shared_the_weights_are_not_replaced_by_others(job: Job, tmp_path: Path) -> None:
    config = dataclasses.replace(job.config, zero_stage=3)
    mine = dataclasses.replace(
        job, checkpoints=tmp_path / "checkpoints", result=tmp_path / "two", config=config
    )
    train_on_ranks(2, mine, lambda step, numbers: None)
    told = r"written by 2 ranks that shared the weights too .* 4 do not go on .* give ranks: 2 .* to begin anew"
    with pytest.raises(OtherRanks, match=told):
        train_on_ranks(4, dataclasses.replace(mine, result=tmp_path / "four"), lambda step, numbers: None)


@pytest.mark.parametrize("who", ["a rank", "who started it"])
def test_whoever_must_end_all_end_with_a_checkpoint(job: Job, tmp_path: Path, who: str) -> None:
    def tell(step: int, numbers: Losses) -> None:
        if step == 10:
            (_ranks_at_work()[1] if who == "a rank" else psutil.Process()).terminate()

    changed = dataclasses.replace(job.config, checkpoint_minutes=1000.0, max_steps=500)
    mine = dataclasses.replace(job, checkpoints=tmp_path / "checkpoints", result=tmp_path / "a", config=changed)
    with pytest.raises(Preempted, match="the same command goes on from its last checkpoint"):
        train_on_ranks(2, mine, tell)
    assert not _ranks_at_work()
    [checkpoint] = mine.checkpoints.glob("checkpoint-*")
    assert (checkpoint / "whole").exists()
    assert 10 <= int(checkpoint.name.rpartition("-")[2]) < 100


@pytest.mark.parametrize("when", ["while they are started", "before they can write a checkpoint"])
def test_whoever_must_end_before_the_first_step_is_tried_again(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def tell() -> None:
        while len(_ranks_at_work()) < 2:
            time.sleep(0.01)
        psutil.Process().terminate()

    def port() -> int:
        psutil.Process().terminate()
        return free_port()

    free_port = ranks_of_training._free_port
    if when == "while they are started":
        monkeypatch.setattr(ranks_of_training, "_free_port", port)
    else:
        threading.Thread(target=tell).start()
    mine = dataclasses.replace(job, checkpoints=tmp_path / "checkpoints", result=tmp_path / "result")
    heard: list[int] = []
    with pytest.raises(Preempted):
        train_on_ranks(2, mine, lambda step, numbers: heard.append(step))
    assert not heard
    assert not _ranks_at_work()


def _ranks_at_work() -> list[psutil.Process]:
    """The processes of a training, by rank."""
    family = psutil.Process().children(recursive=True)
    ranks = [process for process in family if "RANK" in process.environ()]
    return sorted(ranks, key=lambda process: int(process.environ()["RANK"]))


@contextmanager
def _second_node(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """Another node, which shares this folder and nothing else; this process becomes the first one."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    told = {"PET_NNODES": "2", "PET_MASTER_ADDR": socket.gethostname(), "PET_MASTER_PORT": str(port)}
    told |= {"CSLM_JOB": str(folder / "job.json"), "PET_NODE_RANK": "0"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "cslm.training.join", str(folder / "result.json")]
    other = subprocess.Popen(
        command,
        env={**os.environ, "PET_NODE_RANK": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield other
    finally:
        other.kill()


def test_two_nodes_learn_what_one_machine_learns(
    job: Job, together: list[Losses], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _second_node(tmp_path, monkeypatch) as other:
        _same(together, _losses(job, tmp_path / "two", 2))
        said, _ = other.communicate(timeout=120)
    assert other.returncode == 0, said
    assert "node 1 of 2 trains with range(1, 2) of 2" in said


def test_a_node_whose_rank_dies_ends_the_training_of_both(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = dataclasses.replace(job, checkpoints=tmp_path / "checkpoints", result=tmp_path / "result")
    with _second_node(tmp_path, monkeypatch) as other:

        def kill(step: int, numbers: Losses) -> None:
            if step == STEPS // 2:
                psutil.Process(other.pid).children()[0].kill()

        with pytest.raises(RanksFailed, match="rank 0 of 2"):
            train_on_ranks(2, mine, kill)
        said, _ = other.communicate(timeout=120)
    assert other.returncode == 1
    assert "rank 1 of 2 was killed by signal 9" in said
    assert list(mine.checkpoints.glob("checkpoint-*/whole")), "nothing to go on from"


def test_a_node_that_is_taken_away_ends_both_with_a_checkpoint(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = dataclasses.replace(job.config, checkpoint_minutes=1000.0, max_steps=500)
    mine = dataclasses.replace(job, checkpoints=tmp_path / "checkpoints", result=tmp_path / "a", config=changed)
    with _second_node(tmp_path, monkeypatch) as other:
        with pytest.raises(Preempted):
            train_on_ranks(2, mine, lambda step, numbers: other.terminate() if step == 10 else None)
        said, _ = other.communicate(timeout=120)
    assert other.returncode == PREEMPTED, said
    [checkpoint] = mine.checkpoints.glob("checkpoint-*")
    assert (checkpoint / "whole").exists()


def test_no_rank_takes_a_step_that_another_one_cannot(job: Job, tmp_path: Path) -> None:
    model, tokenizer = tiny.make()
    builder = SequenceBuilder(tokenizer)
    sequences = [builder.tts("法国", [n % 16, 5], "zh") for n in range(90)]
    poison = builder.tts("哪", [1, 5], "zh")
    rare = set(poison.input_ids) - {token for sequence in sequences for token in sequence.input_ids}
    pack(iter([*sequences[:40], poison, *sequences[40:]]), tmp_path / "rows", 128, builder.end_id, seed=1)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    model.config.tie_word_embeddings = False
    with torch.no_grad():
        model.get_input_embeddings().weight[list(rare)] = torch.nan
    model.save_pretrained(tmp_path / "start")
    folders = {name: tmp_path / name for name in ("start", "rows", "checkpoints", "result")}
    config = dataclasses.replace(job.config, epochs=1.0, max_steps=None)
    trained_model, trained = train_on_ranks(
        2, dataclasses.replace(job, config=config, **folders), lambda step, numbers: None
    )
    kept = {path.stem for path in folders["checkpoints"].glob("skipped-*")}
    steps = {name.split("-")[2] for name in kept}
    assert kept == {f"skipped-step-{step}-rank-{rank}" for step in steps for rank in (0, 1)}
    assert 1 <= len(steps) < trained.steps / 2
    assert trained.figures()["skipped_steps"] == len(steps)
    assert trained_model.lm_head.weight.isfinite().all()


def test_a_rank_that_fails_ends_the_training(job: Job, tmp_path: Path) -> None:
    broken = dataclasses.replace(job, rows=tmp_path / "none", result=tmp_path / "result")
    with pytest.raises(RanksFailed, match=r"rank [01] of 2 has ended with an error"):
        train_on_ranks(2, broken, lambda step, numbers: None)
