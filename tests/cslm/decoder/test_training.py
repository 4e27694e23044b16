"""Tones in three units: the decoder learns to sing them, and a killed training goes on where it was."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from cslm.audio import SAMPLE_RATE, Samples
from cslm.decoder import DecoderConfig, SpeechDecoder
from cslm.decoder.corpus import SpeechFile, acoustic_batch
from cslm.decoder.training import Merged, Recipe, train_durations, train_flow, train_vocoder
from cslm.decoder.vocoder import HifiGanVocoder, SourceFilterVocoder

TONES = [300.0, 900.0, 2400.0]
RECIPE = Recipe(steps=300, learning_rate=5e-3, batch_seconds=8, seed=1)


def sing(frames: list[int]) -> Samples:
    """Each unit frame as 40 ms of its tone."""
    pitch = np.repeat([TONES[unit] for unit in frames], 640)
    return (0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SpeechFile:
    rng = np.random.default_rng(1)
    melodies = [np.repeat(rng.integers(0, 3, 8), rng.integers(4, 9, 8)) for _ in range(40)]
    speech = SpeechFile(tmp_path_factory.mktemp("speech"))
    speech.write((sing(melody.tolist()), melody, 0) for melody in melodies)
    return speech


def fresh(vocoder: SourceFilterVocoder | HifiGanVocoder | None = None) -> SpeechDecoder:
    torch.manual_seed(3)
    config = DecoderConfig(3, {"flute": "en"}, "", width=32, encoder_layers=1, layers=4, duration_width=16)
    return SpeechDecoder(config, vocoder or SourceFilterVocoder(48, 2))


def pitch_of(samples: Samples) -> float:
    """Frequency of the strongest tone."""
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(power[1:].argmax() + 1) * SAMPLE_RATE / len(samples)


def test_it_sings_what_the_units_say(corpus: SpeechFile, tmp_path: Path) -> None:
    decoder = fresh()
    train_flow(decoder.flow, corpus, RECIPE, tmp_path / "flow.pt", lambda step, losses: None)
    spectral = dataclasses.replace(RECIPE, batch_seconds=6)
    train_vocoder(decoder.vocoder, corpus, spectral, 260, 20, 4, tmp_path / "v.pt", lambda step, losses: None)
    samples = decoder.speak([0] * 15 + [2] * 15 + [1] * 15, "flute")
    for unit, middle in ((0, 8), (2, 23), (1, 38)):
        heard = pitch_of(samples[(middle - 4) * 640 : (middle + 4) * 640])
        assert heard == pytest.approx(TONES[unit], rel=0.1)


def test_durations_are_learnt_and_keep_the_mean() -> None:
    rng = np.random.default_rng(1)

    def utterance() -> Merged:
        units = rng.integers(0, 3, 20).tolist()
        return units, [1 + 3 * unit + int(rng.integers(0, 3)) for unit in units], 0

    train = [utterance() for _ in range(200)]
    decoder = fresh()
    train_durations(decoder.durations, train, 300, 5e-3, 1)
    from cslm.decoder.durations import DurationStream

    said, true = [], []
    for units, durations, _ in (utterance() for _ in range(40)):
        stream = DurationStream(decoder.durations, 0)
        known = [stream.push(list(units)), stream.finish()]
        said += [frames for _, each in known for frames in each]
        true += list(durations)
    assert sum(said) == pytest.approx(sum(true), rel=0.04)
    assert np.abs(np.array(said) - np.array(true)).mean() < 1.2  # the noise alone has 0.9


@pytest.mark.parametrize("kind", ["source_filter", "hifigan"])
def test_a_killed_training_ends_with_the_same_weights(
    kind: str, corpus: SpeechFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cslm.loop.CHECKPOINT_STEPS", 3)
    recipe = Recipe(steps=8, learning_rate=1e-3, batch_seconds=1.6, seed=1)

    def vocoder() -> SourceFilterVocoder | HifiGanVocoder:
        torch.manual_seed(3)
        return SourceFilterVocoder(16, 1) if kind == "source_filter" else HifiGanVocoder.of_size(16)

    def run(decoder: SpeechDecoder, name: str, die_at: int = 0) -> list[int]:
        steps: list[int] = []

        def on_step(step: int, losses: dict[str, float]) -> None:
            steps.append(step)
            assert all(np.isfinite(loss) for loss in losses.values())
            if step == die_at:
                raise KeyboardInterrupt

        try:
            if kind == "source_filter":
                train_flow(decoder.flow, corpus, recipe, tmp_path / f"{name}.flow", on_step)
            train_vocoder(decoder.vocoder, corpus, recipe, 2, 10, 4, tmp_path / f"{name}.voc", on_step)
        except KeyboardInterrupt:
            pass
        return steps

    undisturbed = fresh(vocoder())
    run(undisturbed, "a")
    run(fresh(vocoder()), "b", die_at=5)
    continued = fresh(vocoder())
    assert run(continued, "b")[:2] == [4, 5]
    for name, weight in undisturbed.state_dict().items():
        torch.testing.assert_close(continued.state_dict()[name], weight, rtol=0, atol=1e-6, msg=name)


def test_durations_are_calibrated_on_all_languages() -> None:
    """The corpus has one after the other: here 1,100 utterances of one voice, then 1,100 of another."""
    voices: list[int] = []
    decoder = SpeechDecoder(DecoderConfig(3, {"ann": "en", "wei": "zh"}, ""), SourceFilterVocoder(48, 2))
    decoder.durations.register_forward_hook(lambda module, heard, _: voices.extend(heard[1].tolist()))
    train = [([0, 1, 2], [1, 2, 3], voice) for voice in (0, 1) for _ in range(1100)]
    train_durations(decoder.durations, train, 1, 5e-3, 1)
    assert len(voices[64:]) == 1024, "behind the only step"
    assert 0.4 < np.mean(voices[64:]) < 0.6


def test_a_short_utterance_ends_in_silence_beside_a_long_one(corpus: SpeechFile) -> None:
    """Its padding is what follows when it is spoken, not the unit 0."""
    read: list[torch.Tensor] = []
    decoder = fresh()
    for network in (decoder.flow, decoder.durations):
        network.units.register_forward_hook(lambda module, given, _: read.append(given[0]))
    batch = acoustic_batch(corpus, 600, 160, random.Random(1))
    assert len(set(batch.lengths.tolist())) > 1
    decoder.flow.loss(batch.frames, batch.lengths, batch.features, batch.voices)
    for row, length in zip(read[0], batch.lengths.tolist(), strict=True):
        assert (row[:length] < 3).all() and (row[length:] == decoder.flow.silence).all()
    read.clear()
    train_durations(decoder.durations, [([1, 2], [1, 2], 0), ([1, 2, 0, 1], [1, 2, 1, 3], 0)] * 9, 1, 5e-3, 1)
    for row in torch.cat(read):
        assert row.tolist() in ([1, 2, 3, 3, 3, 3], [1, 2, 0, 1, 3, 3])
