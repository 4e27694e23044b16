"""Give the text model a vocabulary of speech units and markers, or take a CSLM checkpoint to continue from.

Run:  python -m components.backbone

Reads `work/text_model` and `work/tokenizer` (for the number of units), writes `work/backbone`.
"""

from __future__ import annotations

from pathlib import Path

import typer

from components.stage import Stage, StageFailed
from components.train import open_checkpoint, save_checkpoint
from cslm.sequences import SequenceBuilder
from cslm.tokenizer import SpeechTokenizer
from cslm.vocabulary import extend


def main() -> None:
    """Extend the vocabulary."""
    with Stage("backbone") as stage:
        checkpoint = stage.settings.backbone.checkpoint
        model, tokenizer = open_checkpoint(Path(checkpoint or "work/text_model"))
        units = SpeechTokenizer.load(Path("work/tokenizer")).units
        if checkpoint is not None and SequenceBuilder(tokenizer).units != units:
            raise StageFailed(
                f"{checkpoint} knows {SequenceBuilder(tokenizer).units} units, the speech tokenizer has "
                f"{units}: they do not belong together; set backbone.checkpoint to null to start from the "
                "text model"
            )
        added = extend(model, tokenizer, units, stage.settings.seed)
        with stage.output("work/backbone") as folder:
            save_checkpoint(model, tokenizer, folder)
        stage.log_metrics(
            {"parameters": model.num_parameters(), "vocabulary": len(tokenizer), "new_tokens": added}
        )


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
