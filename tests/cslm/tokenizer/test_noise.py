"""A tokenizer that has learnt against noise makes of noisy speech what it makes of clean speech."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from cslm.audio import SAMPLE_RATE, Samples
from cslm.tokenizer import SpeechTokenizer
from cslm.tokenizer import noise_training as noise
from cslm.tokenizer.distortion import distort
from cslm.tokenizer.frame_file import FrameFile
from cslm.tokenizer.speech_tokenizer import TokenizerConfig
from tests.recordings import question

HIGHEST = 1000


def sound(samples: list[Samples], path: Path) -> FrameFile:
    file = noise.sound_file(path)
    file.write(((each, "a", "zz") for each in samples), "a")
    return file


def tones(number: int) -> Samples:
    """Half a second of each of four tones."""
    rng = random.Random(number)
    time = np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
    parts = [0.3 * np.sin(2 * np.pi * rng.uniform(200, HIGHEST) * time) for _ in range(4)]
    return np.concatenate(parts).astype(np.float32)


def fresh() -> SpeechTokenizer:
    torch.manual_seed(3)
    tokenizer = SpeechTokenizer(TokenizerConfig(hidden=32, layers=2, levels=[4, 4], labels=["a"]))
    tokenizer.network.eval()
    return tokenizer


def alike(one: list[Samples], other: list[Samples], by: SpeechTokenizer, of: SpeechTokenizer) -> float:
    """Share of 40 ms in which both have the same unit."""
    return float(np.mean(np.concatenate(by.encode(one)) == np.concatenate(of.encode(other))))


def test_it_makes_the_units_of_clean_speech(tmp_path: Path) -> None:
    before, after = fresh(), fresh()
    file = sound([tones(number) for number in range(40)], tmp_path / "sound")
    recipe = noise.NoiseRecipe(noise_steps=120, batch_seconds=16, seed=1)
    noise.train_against_noise(after, file, recipe, tmp_path / "noise.pt", lambda step, loss: None)
    clean = [tones(number) for number in range(100, 120)]
    rng = np.random.default_rng(1)
    noisy = [each + 0.1 * rng.standard_normal(len(each)).astype(np.float32) for each in clean]
    untaught = alike(noisy, clean, before, before)
    assert alike(noisy, clean, after, before) > untaught + 0.15
    assert alike(clean, clean, after, before) > 0.7, "units keep their meaning"
    for name, weight in before.network.state_dict().items():
        if not name.startswith(noise.MAKES_UNITS):
            assert torch.equal(after.network.state_dict()[name], weight), name


def test_killed_it_continues_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cslm.loop.CHECKPOINT_STEPS", 3)
    file = sound([tones(number) for number in range(8)], tmp_path / "sound")
    recipe = noise.NoiseRecipe(noise_steps=8, batch_seconds=5, seed=1)

    def die(step: int, loss: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    undisturbed, continued = fresh(), fresh()
    noise.train_against_noise(undisturbed, file, recipe, tmp_path / "a.pt", lambda step, loss: None)
    with pytest.raises(KeyboardInterrupt):
        noise.train_against_noise(continued, file, recipe, tmp_path / "b.pt", die)
    steps: list[int] = []
    continued = fresh()
    noise.train_against_noise(continued, file, recipe, tmp_path / "b.pt", lambda step, loss: steps.append(step))
    assert steps == [4, 5, 6, 7, 8]
    for name, weight in undisturbed.network.state_dict().items():
        torch.testing.assert_close(continued.network.state_dict()[name], weight, rtol=0, atol=1e-6, msg=name)


def test_distorted_speech_stays_in_its_place() -> None:
    """By where it is most like what it was made of."""
    clean = question()
    for seed in range(20):
        distorted = distort(clean, np.random.default_rng(seed))
        assert len(distorted) == len(clean)
        assert np.isfinite(distorted).all()
        size = 2 * len(clean)
        likeness = np.fft.irfft(np.fft.rfft(distorted, size) * np.fft.rfft(clean, size).conj(), size)
        assert int(np.abs(likeness).argmax()) in (0, 1, size - 1), seed
        assert np.array_equal(distorted, distort(clean, np.random.default_rng(seed)))


def test_a_microphone_and_a_room_are_not_always_the_same() -> None:
    clean = question()
    assert len({distort(clean, np.random.default_rng(seed)).tobytes() for seed in range(20)}) > 15
