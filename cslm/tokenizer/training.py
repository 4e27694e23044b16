"""Trains a speech tokenizer with CTC on transcribed speech.

Each utterance is masked in time and frequency (SpecAugment, arXiv 1904.08779) and warped in both (pace, and
vocal tract length), which stands in for more voices.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cslm.audio import SAMPLE_RATE
from cslm.loop import Checkpoint, begin_step, on_device
from cslm.optimizer import MuonAdamW
from cslm.precision import half_precision
from cslm.tokenizer.ctc import ctc_loss, needed_frames
from cslm.tokenizer.features import HOP, MEL_BINS
from cslm.tokenizer.frame_file import FrameFile, Utterance
from cslm.tokenizer.model import MAKES_UNITS, SUBSAMPLING, padding_mask
from cslm.tokenizer.speech_tokenizer import SpeechTokenizer, collate

WARP = 0.1
"""How much lower or higher, slower or faster an utterance may become."""
TIME_MASKS, TIME_MASK_S = 2, 0.15
FREQUENCY_MASKS, FREQUENCY_MASK_BINS = 2, 8
CLIP = 5.0
WEIGHT_DECAY = 1e-2
EARLY = 0.5
"""Weight of the CTC loss before the quantiser; benchmarks/log.md has what it does."""


@dataclass(frozen=True)
class Recipe:
    """How to train; the names are those of params.yaml."""

    steps: int
    learning_rate: float
    batch_seconds: float
    quantize_after: int
    continuity: float
    evenness: float
    seed: int
    units_stay: bool = False
    """Train only what reads units."""


def train(
    tokenizer: SpeechTokenizer,
    features: FrameFile,
    recipe: Recipe,
    checkpoint: Path,
    on_step: Callable[[int, float], None],
) -> None:
    """Muon with warm-up and a cosine to zero; `on_step(step, loss)` after each step.

    The state is written to `checkpoint` every so often, and read from there if it exists (cslm.loop).

    Raises:
        ValueError: no utterance to train on.
    """
    if not features.utterances:
        raise ValueError("no utterance to train on")
    network = tokenizer.network.train()
    if recipe.units_stay:
        for name in MAKES_UNITS:
            network.get_submodule(name).eval().requires_grad_(False)
    with on_device(network) as device:
        optimizer = MuonAdamW(network, recipe.learning_rate, WEIGHT_DECAY)
        state = Checkpoint(checkpoint, network=network, optimizer=optimizer)
        first = state.restore()
        batches = itertools.islice(features.batches(recipe.batch_seconds, recipe.seed), first, None)
        for step, batch in zip(range(first, recipe.steps), batches, strict=False):
            rng = begin_step(optimizer, step, recipe.steps, recipe.learning_rate, recipe.seed)
            heard = [augment(mel_of(features, u), needed_frames(u.labels), rng) for u in batch]
            mels, lengths = (each.to(device) for each in collate(heard))
            targets = [torch.tensor([tokenizer.label_ids[n] for n in u.labels]) for u in batch]
            with half_precision(device=device):
                hidden = network.encode(mels, lengths)
                latents = network.to_quantizer(hidden).float()
                codes = network.quantizer(latents, quantize=recipe.units_stay or step >= recipe.quantize_after)
                log_probs = network.log_probs(codes, lengths)
                early_log_probs = network.early_head(hidden).log_softmax(-1)
            ctc = ctc_loss(log_probs, lengths, targets)
            early = ctc_loss(early_log_probs, lengths, targets)
            bounded = network.quantizer.bound(latents)
            speech = ~padding_mask(lengths, bounded.shape[1])
            moved = (bounded[:, 1:] - bounded[:, :-1]).abs().sum(-1)
            changes = moved[speech[:, 1:]]  # none if all have one frame
            evenness = network.quantizer.usage_entropy(bounded[speech])
            loss = (
                ctc
                + EARLY * early
                + recipe.continuity * step / recipe.steps * changes.sum() / max(1, len(changes))
                - recipe.evenness * evenness
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            optimizer.step()
            state.after(step + 1)
            on_step(step + 1, ctc.item())
    network.eval().requires_grad_(True)


def feature_file(path: Path) -> FrameFile:
    """A file for `log_mel` of a corpus, in 16 bits."""
    return FrameFile(path, np.float16, (MEL_BINS,), SUBSAMPLING)


def mel_of(features: FrameFile, utterance: Utterance) -> Tensor:
    """Features (t, 80) of one utterance, float32."""
    return torch.from_numpy(features.read(utterance)).float()


def augment(mel: Tensor, units: int, rng: random.Random) -> Tensor:
    """Warp both axes, then mask spans of time and of frequency, of mel (t, 80), that keeps `units` units."""
    warp = 1 + rng.uniform(-WARP, WARP)
    mel = _read_at(mel.T, torch.arange(MEL_BINS) * warp).T
    frames = max(round(len(mel) * (1 + rng.uniform(-WARP, WARP))), min(len(mel), units * SUBSAMPLING))
    mel = _read_at(mel, torch.arange(frames) * (len(mel) / frames))
    for _ in range(FREQUENCY_MASKS):
        width = rng.randrange(FREQUENCY_MASK_BINS)
        first = rng.randrange(MEL_BINS - width)
        mel[:, first : first + width] = 0
    frames_per_second = SAMPLE_RATE // HOP
    for _ in range(TIME_MASKS):
        width = min(rng.randrange(round(TIME_MASK_S * frames_per_second)), len(mel) // 8)
        first = rng.randrange(len(mel) - width)
        mel[first : first + width] = 0
    return mel


def _read_at(rows: Tensor, position: Tensor) -> Tensor:
    """Rows of (n, m) at fractional positions, between two of them in proportion; behind the last, the last."""
    low = position.floor().long().clamp_max(len(rows) - 1)
    share = (position - low).clamp(0, 1)[:, None]
    return rows[low] * (1 - share) + rows[(low + 1).clamp_max(len(rows) - 1)] * share
