"""Phase 1: continual pre-training on ASR, TTS, translation and text, with DeepSpeed.

Run:  python -m components.pretrain

Reads `work/train/pretrain` (packed rows) and `work/backbone`, writes `work/base`. Killed, it continues from its
last checkpoint when it is run again.
"""

from __future__ import annotations

from pathlib import Path

import typer

from components.train import train_phase


def main() -> None:
    """Train phase 1."""
    train_phase("pretrain", Path("work/train/pretrain"), Path("work/backbone"), Path("work/base"))


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
