"""Train the supervised semantic speech tokenizer, or take a trained one, and measure it.

Run:  python -m components.train_tokenizer        (reads params.yaml and work/accepted)

Writes `work/tokenizer`; its label error by split and language goes to `metrics/train_tokenizer.json`.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import typer

from components.checkpoints import checkpoints_of
from components.settings import TrainTokenizer
from components.stage import Stage, StageFailed, home
from cslm.audio import decode
from cslm.pronunciation import labels
from cslm.shards import read_rows
from cslm.tokenizer import SpeechTokenizer
from cslm.tokenizer.corpus import LabelErrors, tokenize
from cslm.tokenizer.cosyvoice import FILE as COSYVOICE
from cslm.tokenizer.speech_tokenizer import TokenizerConfig
from cslm.tokenizer.training import FeatureFile, Recipe, train

UTTERANCES = Path("work/accepted/utterances")
REPORT_EVERY = 20
MEASURE_BATCH_S = 60.0
MEASURE_BATCH = 32


def main() -> None:
    """Train (or take) and measure the speech tokenizer."""
    stage = Stage("train_tokenizer")
    with checkpoints_of(stage) as checkpoints, stage:
        tokenizer = open_tokenizer(stage.settings.train_tokenizer, stage.settings.seed)
        if stage.settings.train_tokenizer.steps:
            train_on_corpus(stage, tokenizer, checkpoints / "state.pt")
        with stage.output("work/tokenizer") as folder:
            tokenizer.save(folder)
        for split in ("dev", "test", "heldout_voice"):
            stage.log_metrics({split: measure(tokenizer, split)})
        stage.log_metrics({"units": tokenizer.units})


def open_tokenizer(settings: TrainTokenizer, seed: int) -> SpeechTokenizer:
    """The tokenizer to start from, with random weights if there is no checkpoint."""
    if settings.checkpoint is not None:
        if (Path(settings.checkpoint) / COSYVOICE).exists():
            raise StageFailed(
                f"{settings.checkpoint} holds CosyVoice's tokenizer. It gives units, but no probabilities of "
                "sounds, by which stage align finds the words: give a tokenizer that this stage trained. "
                "docs/base-models.md has what CosyVoice's is good for"
            )
        try:
            known = SpeechTokenizer.load(Path(settings.checkpoint))
            return known.with_labels(labels_of_training()) if settings.units_stay else known
        except FileNotFoundError as error:
            raise StageFailed(
                f"no tokenizer in {settings.checkpoint} ({error}); `make setup` pulls it"
            ) from error
    torch.manual_seed(seed)
    names = sorted(labels_of_training())
    return SpeechTokenizer(TokenizerConfig(settings.hidden, settings.layers, list(settings.levels), names))


def labels_of_training() -> set[str]:
    """Names of all sounds of the train split."""
    rows = read_rows(UTTERANCES, ["text", "language"], ["train"])
    return {label.name for row in rows for label in labels(row["text"], row["language"])}


def train_on_corpus(stage: Stage, tokenizer: SpeechTokenizer, checkpoint: Path) -> None:
    """Train on the train split."""
    settings = stage.settings.train_tokenizer

    losses: deque[float] = deque(maxlen=REPORT_EVERY)

    def report(step: int, loss: float) -> None:
        losses.append(loss)  # of one batch: shorter or longer utterances than the last
        if step % REPORT_EVERY == 0 or step == settings.steps:
            mean = sum(losses) / len(losses)
            print(f"progress: {step}/{settings.steps} steps, loss {mean:.3f}", flush=True)
            stage.log_metrics({"loss": mean}, step)

    def corpus() -> Iterator[tuple[Any, str, str]]:
        for row in read_rows(UTTERANCES, ["audio", "text", "language"], ["train"]):
            yield decode(row["audio"]), row["text"], row["language"]

    home().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home(), prefix="scratch-") as folder:
        features = FeatureFile(Path(folder) / "features.f16")
        skipped = features.write(corpus(), tokenizer.label_ids)
        stage.log_metrics({"utterances": len(features.utterances), "skipped": dict(skipped)})
        if not features.utterances:
            raise StageFailed("no utterance of the train split can be used; see report/validation")
        recipe = Recipe(
            settings.steps,
            settings.learning_rate,
            settings.batch_seconds,
            settings.quantize_after,
            settings.continuity,
            settings.evenness,
            stage.settings.seed,
            settings.units_stay,
        )
        train(tokenizer, features, recipe, checkpoint, report)


def measure(tokenizer: SpeechTokenizer, split: str) -> dict[str, Any]:
    """Label error of one split by language, with the number of labels."""
    score = LabelErrors(tokenizer)
    rows = tokenize(tokenizer, read_rows(UTTERANCES, splits=[split]), MEASURE_BATCH_S)
    while batch := list(islice(rows, MEASURE_BATCH)):
        score.add(batch)
    return score.result()


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
