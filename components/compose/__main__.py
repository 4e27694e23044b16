"""Build the chat sequences of both training phases and pack them.

Run:  python -m components.compose

Reads `work/accepted`, `work/aligned` and the tokenizer of `work/backbone`; writes `work/train/pretrain` and
`work/train/finetune`: packed rows with a manifest of what they hold. Sequences over `compose.length` (or
`compose.finetune_length`) are left out and counted. With `compose.store` the rows are brought there, and the
folders say which.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import typer
from transformers import AutoTokenizer

from components.stage import Stage, StageFailed, home
from cslm.aligned import AlignedUtterances
from cslm.mixture import Mixture, Variation
from cslm.packing import PackedManifest, pack
from cslm.row_store import RowStore, StoreRefuses
from cslm.sequences import Sequence, SequenceBuilder

PROGRESS_S = 3.0


def main() -> None:
    """Compose and pack both phases."""
    with Stage("compose") as stage, tempfile.TemporaryDirectory(dir=home(), prefix="scratch-") as scratch:
        settings = stage.settings.compose
        tokenizer = AutoTokenizer.from_pretrained("work/backbone")
        pad, seed = tokenizer.pad_token_id or tokenizer.eos_token_id, stage.settings.seed
        with (
            AlignedUtterances(Path("work/aligned"), Path(scratch) / "aligned.db") as speech,
            stage.output("work/train") as folder,
        ):
            names = [field.name for field in dataclasses.fields(Variation)]
            variation = Variation(**{name: getattr(settings, name) for name in names})
            builder = SequenceBuilder(tokenizer)
            lengths = {"pretrain": settings.length, "finetune": stage.settings.finetune_length}
            mixture = Mixture(builder, speech, Path("work/accepted"), variation, lengths["finetune"], seed)
            phases = {
                "pretrain": mixture.pretrain(settings.pretrain.model_dump()),
                "finetune": mixture.finetune(settings.finetune.model_dump()),
            }
            for phase, sequences in phases.items():
                try:
                    store = RowStore(settings.store) if settings.store else None
                    told = counted(phase, sequences)
                    manifest = pack(told, folder / phase, lengths[phase], pad, seed, store)
                except StoreRefuses as error:
                    raise StageFailed(str(error)) from error
                report(stage, phase, manifest)
        stage.log_metrics({"skipped": dict(mixture.skipped)})


def counted(phase: str, sequences: Iterator[Sequence]) -> Iterator[Sequence]:
    """The same sequences; now and then a line tells how many there were."""
    told = time.monotonic()
    for number, sequence in enumerate(sequences, start=1):
        yield sequence
        if time.monotonic() - told > PROGRESS_S:
            told = time.monotonic()
            print(f"progress: {phase}, {number} sequences", flush=True)


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
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
