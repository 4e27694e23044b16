"""The checkpoint from which a training goes on, with as many ranks as before or with others.

    checkpoint-120/whole                      written last: the number of ranks that wrote the others
    checkpoint-120/global_step120/            DeepSpeed's: each rank's part of what ZeRO shares
    checkpoint-120/global_step120_universal/  the same by weight, made for another number of ranks

A step has the same rows and losses however many ranks share it, so it stays the same training.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import torch
from transformers.trainer_utils import get_last_checkpoint

WHOLE = "whole"
"""A file that marks a checkpoint as completely written."""
UNIVERSAL = "latest_universal"
"""A file that marks what was made for other ranks as completely written; DeepSpeed reads where it is."""

WEIGHTS_SHARED = "zero_pp_rank_*_model_states.pt"
"""Files that DeepSpeed writes where each rank has a part of the weights. Continued by other ranks through the
universal checkpoint, losses were off by 6e-5 where those of the other stages agree to 1e-5."""


class OtherRanks(RuntimeError):
    """A checkpoint of another number of ranks could not be made one of these; the message says what to do."""


def checkpoint_at(folder: str | Path, step: int) -> Path:
    """The one that is written after so many steps."""
    return Path(folder) / f"checkpoint-{step}"


def mark_whole(checkpoint: Path, ranks: int) -> None:
    """Call when all of so many ranks have written it."""
    partial = checkpoint / f"{WHOLE}.partial"
    partial.write_text(f"{ranks}\n", "utf-8")
    partial.rename(checkpoint / WHOLE)


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; half-written ones are removed."""
    for path in folder.glob("checkpoint-*"):
        if not (path / WHOLE).exists():
            shutil.rmtree(path)
    last: str | None = get_last_checkpoint(str(folder)) if folder.exists() else None  # type: ignore[no-untyped-call]
    return last


def fitting(folder: Path, ranks: int) -> tuple[str | None, bool]:
    """The checkpoint from which so many ranks go on, and whether they have to read it as a universal one.

    What is half written is removed. What it takes to make a checkpoint fit other ranks is done once; with
    billions of parameters that is long, so it is called before there are ranks that would wait for one of
    them until torch gives up.

    Raises:
        OtherRanks: it cannot be made to fit.
    """
    last = last_whole_checkpoint(folder)
    return last, last is not None and _made_to_fit(Path(last), ranks)


def agreed(folder: Path) -> tuple[str | None, bool]:
    """What is `fitting` these ranks, as rank 0 finds it; all ranks must call.

    Raises:
        OtherRanks: it cannot be made to fit.
    """
    found: list[tuple[str | None, bool]] = [(None, False)]
    if torch.distributed.get_rank() == 0:
        ranks = torch.distributed.get_world_size()
        last, universal = found[0] = fitting(folder, ranks)
        if last and universal:
            print(
                f"note: {ranks} ranks go on from {last}, which {_ranks_of(Path(last))} have written", flush=True
            )
    torch.distributed.broadcast_object_list(found)
    return found[0]


def _ranks_of(checkpoint: Path) -> int:
    """How many ranks have written it."""
    return int((checkpoint / WHOLE).read_text("utf-8"))


def _made_to_fit(checkpoint: Path, ranks: int) -> bool:
    """Make a universal checkpoint beside a DeepSpeed one if so many ranks need it."""
    before = _ranks_of(checkpoint)
    tag = (checkpoint / "latest").read_text("utf-8").strip()
    shared = list((checkpoint / tag).glob("*_optim_states.pt"))
    if ranks == before or not shared:
        return False
    ways_out = f"give ranks: {before} to go on from it, or remove {checkpoint.parent} to begin anew"
    if list((checkpoint / tag).glob(WEIGHTS_SHARED)):
        raise OtherRanks(
            f"{checkpoint} was written by {before} ranks that shared the weights too (zero_stage 3), from "
            f"which {ranks} do not go on with the same losses: {ways_out}"
        )
    if not (checkpoint / UNIVERSAL).exists():
        target = checkpoint / f"{tag}_universal"
        shutil.rmtree(target, ignore_errors=True)
        made = subprocess.run(
            [
                *(sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"),
                *("--input_folder", str(checkpoint / tag), "--output_folder", str(target)),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if made.returncode:
            said = made.stderr.strip().rpartition("\n")[2]
            raise OtherRanks(
                f"{checkpoint} was written by {before} ranks, and DeepSpeed cannot make it fit {ranks}: "
                f"{ways_out}. It said: {said}"
            )
    return True
