"""Phase 2: instruction tuning on interleaved spoken dialogue, with DeepSpeed.

Run:  python -m components.finetune

Reads `work/train/finetune` (packed rows) and `work/base`, writes `work/model`. Killed, it continues from its
last checkpoint when it is run again.
"""

from __future__ import annotations

from pathlib import Path

import typer

from components.train import train_phase


def main() -> None:
    """Train phase 2."""
    train_phase("finetune", Path("work/train/finetune"), Path("work/base"), Path("work/model"))


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
