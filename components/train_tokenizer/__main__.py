"""Train the supervised semantic speech tokenizer, or take a trained one, and measure it.

Run:  python -m components.train_tokenizer        (reads params.yaml and work/accepted)

Writes `work/tokenizer`; its label error by split and language goes to `metrics/train_tokenizer.json`.
"""

from __future__ import annotations

import logging
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import typer

from components.checkpoints import checkpoints_of
from components.settings import TrainTokenizer
from components.stage import Stage, StageFailed, home
from cslm.audio import decode
from cslm.pronunciation import labels
from cslm.shards import random_part, read_rows
from cslm.tokenizer import COSYVOICE, CosyVoiceTokenizer, SpeechTokenizer, Tokenizer
from cslm.tokenizer.corpus import LabelErrors, tokenize
from cslm.tokenizer.features import log_mel
from cslm.tokenizer.frame_file import FrameFile
from cslm.tokenizer.noise_training import NoiseRecipe, sound_file, train_against_noise
from cslm.tokenizer.reader import UnitReader
from cslm.tokenizer.reader_training import ReaderRecipe, train_reader
from cslm.tokenizer.speech_tokenizer import TokenizerConfig
from cslm.tokenizer.training import Recipe, feature_file, train
from cslm.units import expand_runs

UTTERANCES = Path("work/accepted/utterances")
REPORT_EVERY = 20
BATCH_S = 60.0
MEASURE_BATCH = 32

log = logging.getLogger("cslm")


def main() -> None:
    """Train (or take) and measure the speech tokenizer."""
    stage = Stage("train_tokenizer")
    with checkpoints_of(stage) as checkpoints, stage:
        tokenizer = tokenizer_to_train(stage.settings.train_tokenizer, stage.settings.seed)
        if stage.settings.train_tokenizer.steps:
            train_on_corpus(stage, tokenizer, checkpoints / "state.pt")
        if stage.settings.train_tokenizer.noise_steps:
            train_in_noise(stage, tokenizer, checkpoints / "noise.pt")
        with stage.output("work/tokenizer") as folder:
            tokenizer.save(folder)
        for split in ("dev", "test", "heldout_voice"):
            stage.log_metrics({split: measure(tokenizer, split)})
        stage.log_metrics({"units": tokenizer.units})


def tokenizer_to_train(settings: TrainTokenizer, seed: int) -> SpeechTokenizer | CosyVoiceTokenizer:
    """The tokenizer to start from, with random weights if there is no checkpoint."""
    torch.manual_seed(seed)
    if settings.checkpoint is not None:
        if (Path(settings.checkpoint) / COSYVOICE).exists():
            return cosyvoice(settings)
        try:
            known = SpeechTokenizer.load(Path(settings.checkpoint))
            return known.with_labels(labels_of_training()) if settings.units_stay else known
        except FileNotFoundError as error:
            raise StageFailed(
                f"no tokenizer in {settings.checkpoint} ({error}); `make setup` pulls it"
            ) from error
    names = sorted(labels_of_training())
    return SpeechTokenizer(TokenizerConfig(settings.hidden, settings.layers, list(settings.levels), names))


def cosyvoice(settings: TrainTokenizer) -> CosyVoiceTokenizer:
    """CosyVoice's tokenizer with a recogniser of its units, which knows all sounds of the train split."""
    try:
        tokenizer = CosyVoiceTokenizer.load(Path(str(settings.checkpoint)))
    except ValueError as error:
        raise StageFailed(str(error)) from error
    if tokenizer.reader is None and not settings.steps:
        raise StageFailed(
            f"{settings.checkpoint} has units, but nothing that reads them, by which stage align finds the "
            "words: give train_tokenizer.steps to train it (profiles/llama3.1-8b.yaml has a number)"
        )
    known = tokenizer.reader or UnitReader(tokenizer.units, settings.hidden, [])
    tokenizer.reader = known.with_labels(labels_of_training()) if settings.steps else known
    return tokenizer


def labels_of_training() -> set[str]:
    """Names of all sounds of the train split."""
    rows = read_rows(UTTERANCES, ["text", "language"], ["train"])
    return {label.name for row in rows for label in labels(row["text"], row["language"])}


def train_on_corpus(stage: Stage, tokenizer: SpeechTokenizer | CosyVoiceTokenizer, checkpoint: Path) -> None:
    """Train on the train split: the whole tokenizer, or what reads CosyVoice's units."""
    settings = stage.settings.train_tokenizer
    report = _reporting(stage, "loss", settings.steps)
    home().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home(), prefix="scratch-") as folder:
        heard = frame_file(tokenizer, Path(folder) / "frames")
        seen_s = settings.steps * settings.batch_seconds
        frames = frames_of_training(tokenizer, seen_s, stage.settings.seed)
        skipped = heard.write(frames, tokenizer.label_ids)
        stage.log_metrics({"utterances": len(heard.utterances), "skipped": dict(skipped)})
        if not heard.utterances:
            raise StageFailed("no utterance of the train split can be used; see report/validation")
        if isinstance(tokenizer, CosyVoiceTokenizer):
            assert tokenizer.reader is not None
            reading = ReaderRecipe(
                settings.steps, settings.learning_rate, settings.batch_seconds, stage.settings.seed
            )
            return train_reader(tokenizer.reader, heard, reading, checkpoint, report)
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
        return train(tokenizer, heard, recipe, checkpoint, report)


def train_in_noise(stage: Stage, tokenizer: SpeechTokenizer | CosyVoiceTokenizer, checkpoint: Path) -> None:
    """Train on the train split to make its units of noisy speech too."""
    if isinstance(tokenizer, CosyVoiceTokenizer):
        raise StageFailed("train_tokenizer.noise_steps: CosyVoice's tokenizer is not trained here; leave it 0")
    settings = stage.settings.train_tokenizer
    home().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home(), prefix="scratch-") as folder:
        sound = sound_file(Path(folder) / "sound")
        rows = read_rows(UTTERANCES, ["audio", "text", "language"], ["train"])
        heard = ((decode(row["audio"]), row["text"], row["language"]) for row in rows)
        stage.log_metrics({"noise_skipped": dict(sound.write(heard, tokenizer.label_ids))})
        if not sound.utterances:
            raise StageFailed("no utterance of the train split can be used; see report/validation")
        recipe = NoiseRecipe(settings.noise_steps, settings.batch_seconds, stage.settings.seed)
        report = _reporting(stage, "noise_loss", settings.noise_steps)
        train_against_noise(tokenizer, sound, recipe, checkpoint, report)


def _reporting(stage: Stage, name: str, steps: int) -> Callable[[int, float], None]:
    """Prints and logs the mean loss of the last steps now and then."""
    losses: deque[float] = deque(maxlen=REPORT_EVERY)

    def report(step: int, loss: float) -> None:
        losses.append(loss)  # of one batch: shorter or longer utterances than the last
        if step % REPORT_EVERY == 0 or step == steps:
            mean = sum(losses) / len(losses)
            print(f"progress: {step}/{steps} steps, {name.replace('_', ' ')} {mean:.3f}", flush=True)
            stage.log_metrics({name: mean}, step)

    return report


def frame_file(tokenizer: SpeechTokenizer | CosyVoiceTokenizer, path: Path) -> FrameFile:
    """Where to keep what is trained on: features of sound, or units."""
    return FrameFile(path, np.int32) if isinstance(tokenizer, CosyVoiceTokenizer) else feature_file(path)


def frames_of_training(
    tokenizer: SpeechTokenizer | CosyVoiceTokenizer, most_s: float, seed: int
) -> Iterator[tuple[npt.NDArray[np.generic], str, str]]:
    """Frames, text and language of the utterances of the train split.

    CosyVoice's network takes long, so it is given no more than about `most_s` seconds.
    """
    if isinstance(tokenizer, CosyVoiceTokenizer):
        for row in tokenize(tokenizer, speech_of_training(most_s, seed), BATCH_S):
            yield expand_runs(row["units"], row["durations"]), row["text"], row["language"]
        return
    for row in read_rows(UTTERANCES, ["audio", "text", "language"], ["train"]):
        yield log_mel(decode(row["audio"])).numpy(), row["text"], row["language"]


def speech_of_training(most_s: float, seed: int) -> Iterator[dict[str, Any]]:
    """Utterances of the train split: a random part of about `most_s` seconds if there is more."""
    kind = ("source", "language")
    told = ["duration_s", *kind]
    there_s = sum(row["duration_s"] for row in read_rows(UTTERANCES, told, ["train"]))
    share = most_s / max(most_s, there_s)
    part = random_part(read_rows(UTTERANCES, told, ["train"]), share, seed, kind)
    part_s = sum(row["duration_s"] for row in part)
    hours = [seconds / 3600 for seconds in (part_s, there_s, most_s)]
    log.info("train_tokenizer: hears %.1f of %.1f h of speech; its steps can use %.1f h", *hours)
    return random_part(read_rows(UTTERANCES, splits=["train"]), share, seed, kind)


def measure(tokenizer: Tokenizer, split: str) -> dict[str, Any]:
    """Label error of one split by language, with the number of labels."""
    score = LabelErrors(tokenizer)
    rows = tokenize(tokenizer, read_rows(UTTERANCES, splits=[split]), BATCH_S)
    while batch := list(islice(rows, MEASURE_BATCH)):
        score.add(batch)
    return score.result()


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
