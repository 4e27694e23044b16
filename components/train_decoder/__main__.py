"""Train the speech decoder, or take a trained one, and measure it.

Run:  python -m components.train_decoder     (reads params.yaml, work/accepted, work/units, work/tokenizer)

Three small networks: durations, flow matching (units -> mel), vocoder (mel -> samples). Writes `work/decoder`;
how near its speech is to the dev split's goes to `metrics/train_decoder.json`.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import typer

from components.checkpoints import checkpoints_of
from components.settings import TrainDecoder
from components.stage import Stage, StageFailed, home
from cslm.audio import SAMPLE_RATE, Samples, change_speed, decode
from cslm.decoder import DecoderConfig, SpeechDecoder
from cslm.decoder.corpus import SpeechFile
from cslm.decoder.training import Merged, Recipe, train_durations, train_flow, train_vocoder
from cslm.decoder.vocoder import HifiGanVocoder, SourceFilterVocoder
from cslm.decoder.voices import new_voices, voice_for
from cslm.shards import random_part, read_rows
from cslm.tokenizer import open_tokenizer
from cslm.tokenizer.corpus import LabelErrors
from cslm.units import merge_runs

UTTERANCES, UNITS, TOKENIZER = Path("work/accepted/utterances"), Path("work/units"), Path("work/tokenizer")
DECODER = Path("work/decoder")
REPORT_EVERY = 20
TOLD_EVERY = 500
Row = tuple[Samples, npt.NDArray[np.int64], int]
"""Samples, unit frames and voice of an utterance."""
MEASURED = 40
"""Utterances of dev in each language that are spoken again to measure the decoder."""

log = logging.getLogger("cslm")


def main() -> None:
    """Train (or take) and measure the speech decoder."""
    stage = Stage("train_decoder")
    with checkpoints_of(stage) as checkpoints, stage:
        settings = stage.settings.train_decoder
        decoder = open_decoder(stage)
        if settings.steps or settings.vocoder_steps:
            home().mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=home(), prefix="scratch-") as folder:
                train(stage, decoder, Path(folder), checkpoints)
        with stage.output(DECODER) as folder:
            decoder.save(folder)
        stage.log_metrics({"voices": len(decoder.voices), "dev": measure(SpeechDecoder.load(DECODER))})


def open_decoder(stage: Stage) -> SpeechDecoder:
    """The decoder to start from, with random weights if there is no checkpoint."""
    settings = stage.settings.train_decoder
    tokenizer = open_tokenizer(TOKENIZER)
    if settings.checkpoint is not None:
        folder = Path(settings.checkpoint)
        try:
            decoder = SpeechDecoder.load(folder)
        except FileNotFoundError as error:
            raise StageFailed(f"no decoder in {folder} ({error}); `make setup` pulls it") from error
        except ValueError as error:
            told = "take train_decoder.checkpoint=models/decoder, or train one (profiles/from-scratch.yaml)"
            raise StageFailed(f"{error}; {told}") from error
        if decoder.config.tokenizer != tokenizer.fingerprint:
            raise StageFailed(
                f"{folder} speaks the units of another tokenizer than {TOKENIZER}; train one for these: "
                "train_decoder.checkpoint null, steps and vocoder_steps as in profiles/from-scratch.yaml"
            )
        lacking = new_voices(speakers_of_training(), decoder.config.voices)
        return decoder.with_voices(lacking) if settings.new_voices and lacking else decoder
    torch.manual_seed(stage.settings.seed)
    voices = new_voices(speakers_of_training(), {})
    if not voices:
        raise StageFailed("no utterance of the train split can be used; see report/validation")
    vocoder = (
        SourceFilterVocoder(settings.vocoder_width, settings.vocoder_layers)
        if settings.vocoder == "source_filter"
        else HifiGanVocoder.of_size(settings.vocoder_width)
    )
    return SpeechDecoder(
        DecoderConfig(
            tokenizer.units,
            voices,
            tokenizer.fingerprint,
            settings.width,
            settings.encoder_layers,
            settings.layers,
        ),
        vocoder,
    )


def speakers_of_training() -> set[tuple[str, str]]:
    """Speakers of the train split, each with a language that it speaks."""
    return {(row["speaker"], row["language"]) for row in _units("train", ["speaker", "language"])}


def train(stage: Stage, decoder: SpeechDecoder, scratch: Path, checkpoints: Path) -> None:
    """Train all three networks on the train split."""
    settings, seed = stage.settings.train_decoder, stage.settings.seed
    units = units_of_training(decoder, settings, seed)
    if not units:
        lacking = ", ".join(sorted({name for name, _ in speakers_of_training()})) or "none"
        raise StageFailed(
            f"{settings.checkpoint} has none of the voices of the train split ({lacking}), so there is nothing "
            "to learn: give train_decoder.new_voices true, or steps and vocoder_steps 0 to take it as it is"
        )
    corpus, speeds = SpeechFile(scratch), speeds_of_training()
    corpus.write(_told(utterances(units, speeds, len(decoder.voices))))
    merged = [said for (_, speed), said in units.items() if speed == 1]
    voices = range(len(decoder.voices))
    told = f"{len(corpus.utterances)} utterances, {len(voices)} voices, {len(speeds)} speeds"
    known = decoder.config.voices
    others = sorted({name for name, spoken in speakers_of_training() if not voice_for(name, spoken, known)})
    print(f"progress: {told}", flush=True)
    if others:
        print(f"note: without these voices, which the checkpoint lacks: {', '.join(others)}", flush=True)
    if settings.steps:
        steps, rate = settings.duration_steps, settings.learning_rate
        loss, length = train_durations(decoder.durations, merged, steps, rate, seed)
        stage.log_metrics({"duration_loss": loss, "duration_length": length})
        recipe = Recipe(settings.steps, settings.learning_rate, settings.batch_seconds, seed)
        decoder.flow.choose_voices([*voices] * len(speeds))
        train_flow(
            decoder.flow, corpus, recipe, checkpoints / "flow.pt", Reporter(stage, "flow", settings.steps)
        )
        decoder.flow.choose_voices(voices)
    if settings.vocoder_steps:
        steps = settings.vocoder_steps
        recipe = Recipe(steps, settings.vocoder_learning_rate, settings.vocoder_batch_seconds, seed)
        train_vocoder(
            decoder.vocoder,
            corpus,
            recipe,
            round(settings.spectral_share * steps),
            settings.segment_frames,
            settings.discriminator_channels,
            checkpoints / "vocoder.pt",
            Reporter(stage, "vocoder", steps),
        )


class Reporter:
    """Prints and logs the mean losses of the last steps."""

    def __init__(self, stage: Stage, name: str, steps: int) -> None:
        self._stage, self._name, self._steps = stage, name, steps
        self._losses: deque[Mapping[str, float]] = deque(maxlen=REPORT_EVERY)

    def __call__(self, step: int, losses: dict[str, float]) -> None:
        self._losses.append(losses)
        if step % REPORT_EVERY and step != self._steps:
            return
        means = {name: float(np.mean([each[name] for each in self._losses if name in each])) for name in losses}
        shown = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
        print(f"progress: {self._name} {step}/{self._steps} steps, {shown}", flush=True)
        self._stage.log_metrics({self._name: means}, step)


def _told(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, with a line now and then: to hear their pitch takes some minutes."""
    for number, row in enumerate(rows, 1):
        if number % TOLD_EVERY == 0:
            print(f"progress: pitch of {number} utterances", flush=True)
        yield row


def speeds_of_training() -> list[float]:
    """Speeds at which the train split was tokenised, the recordings' own first."""
    return sorted({row["speed"] for row in _units("train", ["speed"])}, key=lambda speed: (speed != 1, speed))


def units_of_training(
    decoder: SpeechDecoder, settings: TrainDecoder, seed: int
) -> dict[tuple[str, float], Merged]:
    """Units, durations and voice of utterances of the train split, by id and speed.

    Those of voices that the decoder has: a random part, if there is more speech than the steps can use.
    """
    kind = ("speaker", "language", "speed")

    def known(columns: list[str]) -> Iterator[dict[str, Any]]:
        rows = _units("train", [*kind, *columns])
        return (row for row in rows if voice_for(row["speaker"], row["language"], decoder.config.voices))

    most_s = max(
        settings.steps * settings.batch_seconds, settings.vocoder_steps * settings.vocoder_batch_seconds
    )
    there_s = sum(row["duration_s"] for row in known(["duration_s"]))
    share = most_s / max(most_s, there_s)
    number = {name: voice for voice, name in enumerate(decoder.voices)}
    units: dict[tuple[str, float], Merged] = {}
    taken_s = 0.0
    for row in random_part(known(["id", "duration_s", "units", "durations"]), share, seed, kind):
        said, lasting = (np.asarray(row[name], np.int16) for name in ("units", "durations"))
        voice = str(voice_for(row["speaker"], row["language"], decoder.config.voices))
        units[row["id"], row["speed"]] = said, lasting, number[voice]
        taken_s += row["duration_s"]
    hours = [seconds / 3600 for seconds in (taken_s, there_s, most_s)]
    log.info("train_decoder: hears %.1f of %.1f h of speech; its steps can use %.1f h", *hours)
    return units


def utterances(
    units: Mapping[tuple[str, float], Merged], speeds: Sequence[float], voices: int
) -> Iterator[Row]:
    """Samples, unit frames and voice of each utterance of `units_of_training`, at each speed.

    Speech that is played faster is the speech of another voice: number `v` of `voices` at the second speed is
    voice `voices + v`, and so on.
    """
    for row in read_rows(UTTERANCES, ["id", "audio"], ["train"]):
        for number, speed in enumerate(speeds):
            if (row["id"], speed) in units:
                said, lasting, voice = units[row["id"], speed]
                frames = np.repeat(np.asarray(said, np.int64), lasting)
                yield change_speed(decode(row["audio"]), speed), frames, number * voices + voice


def _units(split: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of all languages' units."""
    for folder in sorted(UNITS.iterdir()):
        yield from read_rows(folder, columns, [split])


def measure(decoder: SpeechDecoder) -> dict[str, Any]:
    """Label error of dev speech as recorded and as the decoder speaks its units, and the cost of speaking.

    The tokenizer's own recogniser hears both; the held-out evaluation uses an independent one.
    """
    tokenizer = open_tokenizer(TOKENIZER)
    recorded, spoken = LabelErrors(tokenizer), LabelErrors(tokenizer)
    seconds = spent = 0.0
    for folder in sorted(UNITS.iterdir()):
        language = folder.name
        voices = decoder.natives(language)
        rows = read_rows(folder, ["text", "language", "units", "durations", "speed"], ["dev"])
        dev = (row for row in rows if row["speed"] == 1)
        for number, row in enumerate(islice(dev, MEASURED if voices else 0)):
            started = time.perf_counter()
            samples = decoder.speak(row["units"], voices[number % len(voices)])
            spent += time.perf_counter() - started
            seconds += len(samples) / SAMPLE_RATE
            [frames] = tokenizer.encode([samples])
            units, durations = merge_runs(frames)
            recorded.add([row])
            spoken.add([{**row, "units": units, "durations": durations}])
    if not seconds:
        return {}
    return {"recorded": recorded.result(), "spoken": spoken.result(), "real_time_factor": spent / seconds}


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
