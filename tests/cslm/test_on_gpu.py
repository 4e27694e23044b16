"""Every small training works where it says: on a GPU, if there is one, and ends on the processor.

One is pretended here (tests/pretended_gpu.py): batches, weights, windows and masks that do not meet on one
device fail, and what is learnt is what the processor alone learns.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cslm import loop
from cslm.audio import SAMPLE_RATE, Samples
from cslm.decoder import training as decoder_training
from cslm.decoder.corpus import SpeechFile
from cslm.decoder.durations import DurationPredictor
from cslm.decoder.flow import FlowMatching
from cslm.decoder.vocoder import HifiGanVocoder, SourceFilterVocoder, Vocoder
from cslm.precision import half_precision
from cslm.tokenizer import SpeechTokenizer
from cslm.tokenizer import training as tokenizer_training
from cslm.tokenizer.features import log_mel
from cslm.tokenizer.frame_file import FrameFile
from cslm.tokenizer.noise_training import NoiseRecipe, sound_file, train_against_noise
from cslm.tokenizer.reader import UnitReader
from cslm.tokenizer.reader_training import ReaderRecipe, train_reader
from cslm.tokenizer.speech_tokenizer import TokenizerConfig
from tests.pretended_gpu import PretendedGpu

STEPS = 3
Seen = Callable[[nn.Module, float], None]
Training = Callable[[Path, Seen], nn.Module]


def tones(seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    hertz = np.repeat(rng.uniform(100, 400, 5), SAMPLE_RATE // 5)
    return (0.3 * np.sin(2 * np.pi * np.cumsum(hertz) / SAMPLE_RATE)).astype(np.float32)


def tokenizer() -> SpeechTokenizer:
    made = SpeechTokenizer(TokenizerConfig(hidden=32, layers=1, levels=[4, 4], labels=["a", "b"]))
    for module in made.network.modules():
        if isinstance(module, nn.Dropout):  # whose random numbers a GPU draws in another way
            module.p = 0.0
    return made


def hear(folder: Path, seen: Seen) -> nn.Module:
    made, features = tokenizer(), tokenizer_training.feature_file(folder / "mel")
    features.write([(log_mel(tones(seed)).numpy(), "abba", "zz") for seed in range(4)], "ab")
    recipe = tokenizer_training.Recipe(STEPS, 1e-3, 4, 1, 0.1, 0.1, seed=1)
    tokenizer_training.train(
        made, features, recipe, folder / "hear.pt", lambda step, loss: seen(made.network, loss)
    )
    return made.network


def hear_in_noise(folder: Path, seen: Seen) -> nn.Module:
    made, sound = tokenizer(), sound_file(folder / "sound")
    sound.write([(tones(seed), "abba", "zz") for seed in range(4)], "ab")
    recipe = NoiseRecipe(STEPS, 4, seed=1)
    train_against_noise(made, sound, recipe, folder / "noise.pt", lambda step, loss: seen(made.network, loss))
    return made.network


def read(folder: Path, seen: Seen) -> nn.Module:
    reader, units = UnitReader(10, 16, ["a", "b"]), FrameFile(folder / "units", np.int32)
    units.write([(np.arange(20, dtype=np.int32) % 10, "abba", "zz") for _ in range(4)], "ab")
    for module in reader.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    train_reader(
        reader, units, ReaderRecipe(STEPS, 1e-3, 4, 1), folder / "r.pt", lambda step, loss: seen(reader, loss)
    )
    return reader


def durations(folder: Path, seen: Seen) -> nn.Module:
    predictor = DurationPredictor(10, 2, 16, 1)
    predictor.register_forward_hook(lambda module, _, logs: seen(module, float(logs.detach().sum())))
    rows = [([1, 2, 3][: 1 + seed % 3], [4, 2, 5][: 1 + seed % 3], seed % 2) for seed in range(9)]
    decoder_training.train_durations(predictor, rows, STEPS, 1e-3, 1)
    return predictor


def speech(folder: Path) -> SpeechFile:
    corpus = SpeechFile(folder)
    corpus.write((tones(seed)[: 640 * (20 + seed)], np.arange(20 + seed) % 10, seed % 2) for seed in range(5))
    return corpus


def flow(folder: Path, seen: Seen) -> nn.Module:
    made, recipe = FlowMatching(10, 2, 16, 1, 2), decoder_training.Recipe(STEPS, 1e-3, 2, seed=1)
    decoder_training.train_flow(
        made, speech(folder), recipe, folder / "f.pt", lambda step, losses: seen(made, sum(losses.values()))
    )
    return made


def speak(made: Vocoder, folder: Path, seen: Seen) -> nn.Module:
    recipe = decoder_training.Recipe(STEPS, 1e-3, 1, seed=1)
    decoder_training.train_vocoder(
        made,
        speech(folder),
        recipe,
        1,
        10,
        4,
        folder / "v.pt",
        lambda step, losses: seen(made, sum(losses.values())),
    )
    return made


def source_filter(folder: Path, seen: Seen) -> nn.Module:
    return speak(SourceFilterVocoder(16, 1), folder, seen)


def hifigan(folder: Path, seen: Seen) -> nn.Module:
    return speak(HifiGanVocoder.of_size(16), folder, seen)


TRAININGS: tuple[Training, ...] = (hear, hear_in_noise, read, durations, flow, source_filter, hifigan)


def losses_of(training: Training, folder: Path, device: str) -> list[float]:
    """The losses of a training whose network is on `device` in the meantime, and not in the end."""
    losses = []

    def seen(network: nn.Module, loss: float) -> None:
        if network.training or training is hear_in_noise:
            assert {weight.device.type for weight in network.state_dict().values()} == {device}
        losses.append(loss)

    torch.manual_seed(3)
    with pytest.MonkeyPatch.context() as patch, PretendedGpu():
        # Pretended tensors cannot be made in inference mode.
        patch.setattr("torch.inference_mode", lambda mode=True: torch.no_grad() if mode else nullcontext())
        patch.setattr("cslm.loop.device", lambda: device)
        for module in ("cslm.tokenizer.training", "cslm.tokenizer.noise_training", "cslm.decoder.training"):
            patch.setattr(f"{module}.half_precision", lambda device: nullcontext())
        network = training(folder, seen)
    assert all(
        weight.device.type == "cpu" and weight.isfinite().all() for weight in network.state_dict().values()
    )
    return losses


@pytest.mark.parametrize("training", TRAININGS, ids=lambda training: training.__name__)
def test_a_training_on_a_gpu_has_the_losses_of_the_processor(training: Training, tmp_path: Path) -> None:
    there, here = (losses_of(training, tmp_path, device) for device in ("meta", "cpu"))
    assert len(here) >= STEPS
    assert there == pytest.approx(here, rel=2e-3)


def test_a_checkpoint_of_a_gpu_goes_on_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cslm.loop.CHECKPOINT_STEPS", 1)
    layer, other = nn.Linear(2, 2), nn.Linear(2, 2)
    with monkeypatch.context() as on_gpu:
        on_gpu.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
        loop.Checkpoint(tmp_path / "state.pt", layer=layer).after(7)
    assert loop.Checkpoint(tmp_path / "state.pt", layer=other).restore() == 7
    assert torch.equal(other.weight, layer.weight)


def test_half_precision_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for able in (True, False):
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True, able=able: able)
        made = half_precision(device="cuda")
        assert (made.device, made.fast_dtype, made._enabled) == ("cuda", torch.bfloat16, able)
        assert not half_precision(False, "cuda")._enabled
