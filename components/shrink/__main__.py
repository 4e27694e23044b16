"""Copy a checkpoint with its weights in 16 bits: half the size, for checkpoints that ship.

Run:  python -m components.shrink work/model models/cslm

Training opens them in 32 bits again. Weights that 16 bits cannot hold (over 65,504) are an error.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors import safe_open
from safetensors.torch import save_file


def main(
    source: Annotated[Path, typer.Argument(help="folder with *.safetensors")],
    target: Annotated[Path, typer.Argument(help="folder to write; it must not exist")],
) -> None:
    """Copy a checkpoint with its weights in 16 bits."""
    files = sorted(source.glob("*.safetensors"))
    if not files:
        raise SystemExit(f"{source}: no *.safetensors there")
    if target.exists():
        raise SystemExit(f"{target} exists; remove it first")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(
        source, partial, ignore=shutil.ignore_patterns("*.safetensors"), copy_function=shutil.copyfile
    )
    for path in files:
        with safe_open(path, "pt") as file:
            weights = {name: halve(name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            save_file(weights, partial / path.name, file.metadata())
    partial.rename(target)


def halve(name: str, weight: torch.Tensor) -> torch.Tensor:
    """`weight` in 16 bits, if it is one of floats.

    Raises:
        SystemExit: it does not fit.
    """
    if not weight.is_floating_point():
        return weight
    half = weight.half()
    if not torch.isfinite(half).all():
        raise SystemExit(f"{name} has weights over 65,504: 16 bits cannot hold them")
    return half


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
