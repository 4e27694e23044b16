"""Trains the two halves of the decoder: units to features (durations and flow), and those to samples (vocoder).

The vocoder learns from spectra alone for the first part of its steps, and against discriminators in the
rest: they are most of the cost, and have nothing to teach a generator that does not yet hum.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cslm.decoder.corpus import SpeechFile, acoustic_batch, waveform_batch
from cslm.decoder.discriminators import Discriminators
from cslm.decoder.durations import DurationPredictor
from cslm.decoder.flow import FlowMatching
from cslm.decoder.mel import BINS, HOP, log_mel
from cslm.decoder.vocoder import Vocoder
from cslm.loop import Checkpoint, begin_step, on_device
from cslm.optimizer import MuonAdamW
from cslm.precision import half_precision

CLIP = 5.0
LONGEST_FRAMES = 160
STATISTICS_BATCHES = 20
DURATION_BATCH = 64
EDGE = 2
"""Mel frames at either end of a stretch whose samples lie partly outside of it."""
BETAS = (0.8, 0.99)
FORETOLD_WEIGHT = 0.05
"""Of pitch and voicing, one number each where the mel is a mean of 80: with 1 the encoder serves only them."""
MEL_WEIGHT, SPECTRUM_WEIGHT, FEATURE_WEIGHT = 45.0, 10.0, 2.0
RESOLUTIONS = (512, 1024, 2048)

OnStep = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Recipe:
    """How to train one half."""

    steps: int
    learning_rate: float
    batch_seconds: float
    seed: int


def train_flow(
    flow: FlowMatching, corpus: SpeechFile, recipe: Recipe, checkpoint: Path, on_step: OnStep
) -> None:
    """Train the flow on the corpus' unit frames and features, with Muon; `on_step(step, losses)` after each."""
    flow.train()
    with on_device(flow) as device:
        optimizer = MuonAdamW(flow, recipe.learning_rate, 0.0)
        state = Checkpoint(checkpoint, flow=flow, optimizer=optimizer)
        first = state.restore()
        if not first:
            mean, deviation = _statistics(corpus, recipe.seed)
            flow.mean.copy_(mean)
            flow.deviation.copy_(deviation)
        total = round(recipe.batch_seconds * 25)
        for step in range(first, recipe.steps):
            rng = begin_step(optimizer, step, recipe.steps, recipe.learning_rate, recipe.seed)
            batch = acoustic_batch(corpus, total, LONGEST_FRAMES, rng, device)
            with half_precision(device=device):
                losses = flow.loss(batch.frames, batch.lengths, batch.features, batch.voices)
            foretold = losses["pitch"] + losses["voicing"]
            _update(flow, optimizer, losses["flow"] + losses["prior"] + FORETOLD_WEIGHT * foretold)
            state.after(step + 1)
            on_step(step + 1, {name: loss.item() for name, loss in losses.items()})
    flow.eval()


Numbers = Sequence[int] | npt.NDArray[np.int16]
Merged = tuple[Numbers, Numbers, int]
"""Units, durations and voice of one utterance."""


def train_durations(
    predictor: DurationPredictor,
    corpus: Sequence[Merged],
    steps: int,
    learning_rate: float,
    seed: int,
) -> tuple[float, float]:
    """Train the predictor on utterances' units and durations.

    Gives the mean loss of its last tenth of steps, and the length of its speech over that of the recordings.
    """
    predictor.train()
    with on_device(predictor) as device:
        optimizer = torch.optim.AdamW(predictor.parameters(), learning_rate, weight_decay=0.0)
        losses: list[float] = []
        for step in range(steps):
            rng = begin_step(optimizer, step, steps, learning_rate, seed)
            rows = _pad(rng.choices(corpus, k=DURATION_BATCH), predictor.silence)
            units, durations, voices, inside = (each.to(device) for each in rows)
            wrong = (predictor(units, voices) - durations.log()).square()
            loss = wrong[inside].mean()
            _update(predictor, optimizer, loss)
            losses.append(loss.item())
    predictor.eval()
    with torch.inference_mode():
        heard = random.Random(seed).sample(corpus, min(len(corpus), 16 * DURATION_BATCH))
        units, durations, voices, inside = _pad(heard, predictor.silence)
        length = predictor.calibrate(predictor(units, voices)[inside], durations[inside])
    return float(np.mean(losses[-max(1, steps // 10) :])), length


def _pad(rows: Sequence[Merged], silence: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Units and durations (`silence` and 1 in the padding), voices, and which places are no padding."""
    longest = max(len(units) for units, _, _ in rows)
    units = torch.full((len(rows), longest), silence)
    durations = torch.ones(len(rows), longest)
    inside = torch.zeros(len(rows), longest, dtype=torch.bool)
    for row, (merged, lasting, _) in enumerate(rows):
        units[row, : len(merged)] = torch.as_tensor(merged)
        durations[row, : len(merged)] = torch.as_tensor(lasting, dtype=torch.float)
        inside[row, : len(merged)] = True
    return units, durations, torch.tensor([voice for _, _, voice in rows]), inside


def train_vocoder(
    vocoder: Vocoder,
    corpus: SpeechFile,
    recipe: Recipe,
    adversarial_after: int,
    segment_frames: int,
    channels: int,
    checkpoint: Path,
    on_step: OnStep,
) -> None:
    """Train a vocoder on stretches of `segment_frames` unit frames; `on_step(step, losses)` after each."""
    vocoder.train()
    judges = Discriminators(channels).train()
    with on_device(vocoder, judges) as device:
        optimizer = torch.optim.AdamW(vocoder.parameters(), recipe.learning_rate, BETAS, weight_decay=0.01)
        opponent = torch.optim.AdamW(judges.parameters(), recipe.learning_rate, BETAS, weight_decay=0.01)
        state = Checkpoint(checkpoint, vocoder=vocoder, judges=judges, optimizer=optimizer, opponent=opponent)
        first = state.restore()
        if not first:
            mean, deviation = _statistics(corpus, recipe.seed)
            vocoder.mean.copy_(mean[: len(vocoder.mean)])
            vocoder.scale.copy_(deviation[: len(vocoder.scale)])
        segments = max(1, round(recipe.batch_seconds * 25 / segment_frames))
        for step in range(first, recipe.steps):
            rng = begin_step(optimizer, step, recipe.steps, recipe.learning_rate, recipe.seed)
            begin_step(opponent, step, recipe.steps, recipe.learning_rate, recipe.seed)
            features, real = waveform_batch(corpus, segments, segment_frames, rng, device)
            features = features[:, : real.shape[1] // HOP]
            made = vocoder(features)
            # Where a stretch is cut off, half of the windows are missing.
            real, made = real[:, HOP : made.shape[1] - HOP], made[:, HOP:-HOP]
            losses: dict[str, float] = {}
            adversarial = step >= adversarial_after
            if adversarial:
                judged = judges.loss(real, made.detach())
                _update(judges, opponent, judged)
                losses["discriminators"] = judged.item()
            near = mel_distance(made, features[:, 1:-1, :BINS])
            spectral = spectral_distance(made, real)
            loss = MEL_WEIGHT * near + SPECTRUM_WEIGHT * spectral
            if adversarial:
                deceived, seen = judges.against(real, made)
                loss = loss + deceived + FEATURE_WEIGHT * seen
                losses["deceived"] = deceived.item()
            _update(vocoder, optimizer, loss)
            state.after(step + 1)
            on_step(step + 1, losses | {"mel": near.item(), "spectrum": spectral.item()})
    vocoder.eval()


def mel_distance(made: Tensor, mel: Tensor) -> Tensor:
    """Mean absolute distance of log10 mels: samples (B, n), and the mel (B, M, 80) they should have."""
    return (log_mel(made) - mel)[:, EDGE:-EDGE].abs().mean()


def spectral_distance(made: Tensor, real: Tensor) -> Tensor:
    """Mean absolute distance of log magnitudes at three resolutions (Parallel WaveGAN, arXiv 1910.11480)."""
    distances = []
    for size in RESOLUTIONS:
        window = torch.hann_window(size, device=made.device)
        a, b = (
            torch.stft(x, size, size // 4, window=window, return_complex=True).abs().clamp_min(1e-4).log()
            for x in (made, real)
        )
        distances.append((a - b).abs().mean())
    return torch.stack(distances).mean()


def _statistics(corpus: SpeechFile, seed: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each feature."""
    rows = torch.cat(list(_feature_rows(corpus, seed)))
    return rows.mean(0), rows.std(0).clamp_min(1e-3)


def _feature_rows(corpus: SpeechFile, seed: int) -> Iterator[Tensor]:
    rng = random.Random(seed)
    for _ in range(STATISTICS_BATCHES):
        chosen = acoustic_batch(corpus, 2 * LONGEST_FRAMES, LONGEST_FRAMES, rng)
        for features, length in zip(chosen.features, chosen.lengths.tolist(), strict=True):
            yield features[: length * 5 // 2]


def _update(network: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
    optimizer.step()
