"""A checkpoint that does not fit the ranks is refused with both ways out."""

from __future__ import annotations

from pathlib import Path

import pytest

from cslm.training.checkpoints import OtherRanks, agreed, mark_whole
from cslm.training.zero import single_rank


def test_a_checkpoint_that_cannot_be_made_to_fit_names_both_ways_out(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-5"
    (checkpoint / "global_step5").mkdir(parents=True)
    (checkpoint / "latest").write_text("global_step5")
    (checkpoint / "global_step5" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"not DeepSpeed's")
    with single_rank():
        assert agreed(tmp_path / "none") == (None, False)
        mark_whole(checkpoint, 1)
        assert agreed(tmp_path) == (str(checkpoint), False), "as many ranks read what they wrote"
        mark_whole(checkpoint, 2)
        told = rf"checkpoint-5 was written by 2 ranks, .* fit 1: give ranks: 2 to go on .* remove {tmp_path} "
        with pytest.raises(OtherRanks, match=told):
            agreed(tmp_path)
    assert (checkpoint / "whole").exists(), "it is still there for as many ranks as before"
