"""Build the chat sequences of both training phases and pack them.

Run:  python -m components.compose

Reads `work/accepted`, `work/aligned` and the tokenizer of `work/backbone`; writes `work/train/pretrain` and
`work/train/finetune`: packed rows with a manifest of what they hold. Sequences over `compose.length` are left
out and counted.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import typer
from transformers import AutoTokenizer

from components.stage import Stage, StageFailed, home
from cslm.aligned import AlignedUtterances
from cslm.mixture import Mixture, Variation
from cslm.packing import PackedManifest, pack
from cslm.sequences import SequenceBuilder


def main() -> None:
    """Compose and pack both phases."""
    with Stage("compose") as stage, tempfile.TemporaryDirectory(dir=home()) as scratch:
        settings = stage.settings.compose
        tokenizer = AutoTokenizer.from_pretrained("work/backbone")
        pad, seed = tokenizer.pad_token_id or tokenizer.eos_token_id, stage.settings.seed
        with (
            AlignedUtterances(Path("work/aligned"), Path(scratch) / "aligned.db") as speech,
            stage.output("work/train") as folder,
        ):
            variation = Variation(settings.unit_dropout, settings.splice, settings.excerpt, settings.listening)
            mixture = Mixture(SequenceBuilder(tokenizer), speech, Path("work/accepted"), variation, seed)
            phases = {
                "pretrain": mixture.pretrain(settings.pretrain.model_dump()),
                "finetune": mixture.finetune(settings.finetune.model_dump()),
            }
            for phase, sequences in phases.items():
                manifest = pack(sequences, folder / phase, settings.length, pad, seed)
                report(stage, phase, manifest)
        stage.log_metrics({"skipped": dict(mixture.skipped)})


def report(stage: Stage, phase: str, manifest: PackedManifest) -> None:
    """Counts of one phase."""
    if not manifest.rows:
        raise StageFailed(
            f"the mixture in compose.{phase} selects no sequence of at most {manifest.length} tokens"
        )
    stage.log_metrics(
        {
            phase: {
                "rows": manifest.rows,
                "tokens": manifest.tokens,
                "utilization": manifest.utilization,
                "sequences": manifest.sequences,
                "task_tokens": manifest.task_tokens,
                "too_long": manifest.too_long,
            }
        }
    )


if __name__ == "__main__":
    typer.run(main)
