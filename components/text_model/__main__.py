"""The text language model that speech is grafted onto: a checkpoint, or a small Llama trained here.

Run:  python -m components.text_model

Reads the texts of `work/accepted`, writes `work/text_model` (a Hugging Face checkpoint). Without a checkpoint,
a tokenizer of characters and a Llama with random weights are trained on translations and written dialogues.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import typer

from components.checkpoints import checkpoint_folder
from components.settings import TextModel, Training
from components.stage import Stage, StageFailed, home
from components.train import (
    log_to,
    open_checkpoint,
    save_checkpoint,
    training_config,
    use_deepspeed_here,
)
from cslm.packing import PackedRows, pack
from cslm.sequences import PROMPTS, ChatBuilder, Sequence
from cslm.shards import read_rows
from cslm.tables import read_table
from cslm.text_model import random_llama, train_text_tokenizer
from cslm.training import TrainingConfig, train

ACCEPTED = Path("work/accepted")
ROW_LENGTH = 256


def main() -> None:
    """Take or train the text model."""
    stage = Stage("text_model")
    section, seed = stage.settings.text_model, stage.settings.seed
    checkpoints = checkpoint_folder(stage, [ACCEPTED])
    with stage:
        if section.checkpoint is not None:
            model, tokenizer = open_checkpoint(Path(section.checkpoint))
        else:
            tokenizer = train_text_tokenizer(texts(), section.vocabulary, PROMPTS)
            model = random_llama(tokenizer, section.hidden, section.layers, section.heads, seed)
        if section.steps:
            use_deepspeed_here()
            with tempfile.TemporaryDirectory(dir=home()) as folder:
                sequences = written_tasks(ChatBuilder(tokenizer))
                manifest = pack(sequences, Path(folder), ROW_LENGTH, tokenizer.pad_token_id, seed)
                if not manifest.rows:
                    raise StageFailed(
                        "no written dialogue and no translation to learn from: add some to a corpus, or name a "
                        "trained model in text_model.checkpoint"
                    )
                config = recipe(section, seed)
                trained = train(model, PackedRows(Path(folder)), config, checkpoints, log_to(stage))
            stage.log_metrics({**trained.figures(), "too_long": manifest.too_long})
        with stage.output("work/text_model") as folder:
            save_checkpoint(model, tokenizer, folder)
        stage.log_metrics({"parameters": model.num_parameters(), "vocabulary": len(tokenizer)})
    shutil.rmtree(checkpoints)


def recipe(section: TextModel, seed: int) -> TrainingConfig:
    """Train for a number of steps, however many passes over the text those are."""
    steps = Training(
        learning_rate=section.learning_rate, batch_tokens=section.batch_tokens, max_steps=section.steps
    )
    return dataclasses.replace(training_config(steps, seed), epochs=math.inf)


def texts() -> Iterator[str]:
    """All text of the train split."""
    columns = {"dialogues": ("question", "answer"), "translations": ("source", "target")}
    for table, names in columns.items():
        for row in read_table(ACCEPTED / f"{table}.parquet"):
            if row["split"] == "train":
                yield from (row[name] for name in names)
    yield from (row["text"] for row in read_rows(ACCEPTED / "utterances", ["text"], ["train"]))


def written_tasks(builder: ChatBuilder) -> Iterator[Sequence]:
    """Translations, and dialogues as written instructions (each once, however often it was spoken)."""
    seen: set[tuple[str, str]] = set()
    for row in read_table(ACCEPTED / "translations.parquet"):
        if row["split"] == "train":
            languages = row["source_language"], row["target_language"]
            yield builder.mt(row["source"], row["target"], *languages)
    for row in read_table(ACCEPTED / "dialogues.parquet"):
        written = row["question"], row["answer"]
        if (
            row["split"] == "train"
            and row["question_language"] == row["answer_language"]
            and written not in seen
        ):
            seen.add(written)
            yield builder.text(*written, row["answer_language"])


if __name__ == "__main__":
    typer.run(main)
