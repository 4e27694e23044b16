"""A checkpoint that does not fit the ranks is refused with both ways out."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.settings import Training
from components.train import training_config
from cslm.training.checkpoints import OtherRanks, agreed, mark_whole
from cslm.training.ranks import Job, train_on_ranks
from cslm.training.zero import single_rank


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    made = tmp_path / "checkpoint-5"
    (made / "global_step5").mkdir(parents=True)
    (made / "latest").write_text("global_step5")
    (made / "global_step5" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"not DeepSpeed's")
    return made


def test_a_checkpoint_that_cannot_be_made_to_fit_names_both_ways_out(checkpoint: Path, tmp_path: Path) -> None:
    with single_rank():
        assert agreed(tmp_path / "none") == (None, False)
        mark_whole(checkpoint, 1)
        assert agreed(tmp_path) == (str(checkpoint), False), "as many ranks read what they wrote"
        mark_whole(checkpoint, 2)
        told = rf"checkpoint-5 was written by 2 ranks, .* fit 1: give ranks: 2 to go on .* remove {tmp_path} "
        with pytest.raises(OtherRanks, match=told):
            agreed(tmp_path)
    assert (checkpoint / "whole").exists(), "it is still there for as many ranks as before"


def test_it_is_made_to_fit_before_there_are_ranks_that_wait_for_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one rank works at 96 GB, the others would give up after torch's half an hour."""
    started: list[object] = []
    monkeypatch.setattr("cslm.training.ranks.subprocess.Popen", lambda *args, **_: started.append(args))
    (checkpoint / "global_step5" / "zero_pp_rank_0_mp_rank_00_model_states.pt").touch()
    mark_whole(checkpoint, 4)
    config = training_config(Training(learning_rate=1e-3, zero_stage=3, ranks=2), seed=1)
    job = Job(tmp_path, tmp_path, None, tmp_path, tmp_path / "result", config, [])
    with pytest.raises(OtherRanks, match=r"give ranks: 4 to go on"):
        train_on_ranks(2, job, lambda step, numbers: None)
    assert not started
