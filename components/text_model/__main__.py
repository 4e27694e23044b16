"""The text language model that speech is grafted onto: a checkpoint, or a small Llama trained here.

Run:  python -m components.text_model

Reads the texts of `work/accepted`, writes `work/text_model` (a Hugging Face checkpoint). Without a checkpoint,
a tokenizer of characters and a Llama with random weights are trained on translations and written dialogues.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import typer

from components.checkpoints import checkpoints_of
from components.settings import TextModel, Training
from components.stage import Stage, StageFailed, home
from components.train import (
    explained,
    log_to,
    open_checkpoint,
    save_checkpoint,
    training_config,
    use_deepspeed_here,
)
from cslm.packing import TOO_LONG, PackedRows, pack
from cslm.prompts import prompts
from cslm.sequences import ChatBuilder, Sequence
from cslm.text_model import random_llama, train_text_tokenizer
from cslm.training import TrainingConfig, train
from cslm.vocabulary import draw
from cslm.written import WrittenTasks, training_texts

ACCEPTED = Path("work/accepted")
ROW_LENGTH = 256
REPETITIONS = 0.5
"""Words to repeat, for each instruction."""


def main() -> None:
    """Take or train the text model."""
    stage = Stage("text_model")
    section, seed = stage.settings.text_model, stage.settings.seed
    with checkpoints_of(stage) as checkpoints, stage:
        if section.checkpoint is not None:
            model, tokenizer = open_checkpoint(Path(section.checkpoint))
        else:
            tokenizer = train_text_tokenizer(
                training_texts(ACCEPTED), section.vocabulary, prompts(stage.settings.languages)
            )
            model = random_llama(tokenizer, section.hidden, section.layers, section.heads, seed)
        left_out = ""
        if section.steps:
            use_deepspeed_here()
            with tempfile.TemporaryDirectory(dir=home(), prefix="scratch-") as scratch:
                rows = Path(scratch)
                shown: set[int] = set()
                tasks = WrittenTasks(ChatBuilder(tokenizer), ACCEPTED, section.question_noise, seed)
                wanted = section.steps * section.batch_tokens
                sequences = noting(written_tasks(tasks, wanted), shown)
                manifest = pack(sequences, rows, ROW_LENGTH, tokenizer.pad_token_id, seed)
                if not manifest.rows:
                    raise StageFailed(
                        "no written dialogue and no translation to learn from: add some to a corpus, or name a "
                        "trained model in text_model.checkpoint"
                    )
                left_out = (rows / TOO_LONG).read_text("utf-8")
                config = recipe(section, seed)
                with explained():
                    trained = train(model, PackedRows(rows), config, checkpoints, log_to(stage))
                if section.checkpoint is None:
                    # Training pushes all tokens that it never shows the same way; prompts that differ in
                    # nothing could not be told apart later.
                    draw(model, set(range(len(tokenizer))) - shown, shown, seed)
            stage.log_metrics({**trained.figures(), "too_long": manifest.too_long})
        with stage.output("work/text_model") as folder:
            save_checkpoint(model, tokenizer, folder)
            if left_out:
                (folder / TOO_LONG).write_text(left_out, "utf-8")
        stage.log_metrics({"parameters": model.num_parameters(), "vocabulary": len(tokenizer)})


def noting(sequences: Iterable[Sequence], tokens: set[int]) -> Iterator[Sequence]:
    """The same sequences; their tokens are added to `tokens`."""
    for sequence in sequences:
        tokens.update(sequence.input_ids)
        yield sequence


def recipe(section: TextModel, seed: int) -> TrainingConfig:
    """Train for a number of steps, however many passes over the text those are."""
    steps = Training(
        learning_rate=section.learning_rate,
        batch_tokens=section.batch_tokens,
        max_steps=section.steps,
        optimizer=section.optimizer,
        zero_stage=0 if section.optimizer == "muon" else 2,
    )
    return dataclasses.replace(training_config(steps, seed), epochs=math.inf)


def written_tasks(tasks: WrittenTasks, tokens: int) -> Iterator[Sequence]:
    """At least so many tokens of translations, instructions and repetitions, pass after pass."""
    given = 0
    while given < tokens:
        before = given
        for task in (tasks.translations(1.0), tasks.instructions(1.0), tasks.repetitions(REPETITIONS)):
            for sequence in task:
                given += len(sequence.input_ids)
                yield sequence
        if given == before:
            return


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
