"""Give the text model a vocabulary of speech units and markers, or take a CSLM checkpoint to continue from.

Run:  python -m components.backbone

Reads `work/text_model`, `work/tokenizer` (for the number of units) and, for words to add (`new_words`), the
texts of `work/accepted`; writes `work/backbone`.
"""

from __future__ import annotations

from pathlib import Path

import typer
from transformers import PreTrainedTokenizerBase

from components.stage import Stage, StageFailed
from components.train import open_checkpoint, save_checkpoint
from cslm.new_words import add_words
from cslm.prompts import prompts
from cslm.sequences import SequenceBuilder
from cslm.tokenizer import open_tokenizer
from cslm.vocabulary import extend
from cslm.written import training_texts

ACCEPTED = Path("work/accepted")


def main() -> None:
    """Extend the vocabulary."""
    with Stage("backbone") as stage:
        checkpoint = stage.settings.backbone.checkpoint
        model, tokenizer = open_checkpoint(Path(checkpoint or "work/text_model"))
        units = open_tokenizer(Path("work/tokenizer")).units
        if checkpoint is not None and SequenceBuilder(tokenizer).units != units:
            raise StageFailed(
                f"{checkpoint} knows {SequenceBuilder(tokenizer).units} units, the speech tokenizer has "
                f"{units}: they do not belong together; set backbone.checkpoint to null to start from the "
                "text model"
            )
        known = len(tokenizer)
        if most := stage.settings.backbone.new_words:
            tokenizer = with_words(tokenizer, most, stage.settings.languages)
        added = extend(model, tokenizer, units, stage.settings.seed, known)
        with stage.output("work/backbone") as folder:
            save_checkpoint(model, tokenizer, folder)
        stage.log_metrics(
            {"parameters": model.num_parameters(), "vocabulary": len(tokenizer), "new_tokens": added}
        )


def with_words(tokenizer: PreTrainedTokenizerBase, most: int, languages: list[str]) -> PreTrainedTokenizerBase:
    """The tokenizer with a token for each word of the corpora, and for each piece of the languages' prompts."""
    try:
        return add_words(tokenizer, training_texts(ACCEPTED), most, prompts(languages))
    except ValueError as error:
        raise StageFailed(f"{error}; set backbone.new_words to 0") from error


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
