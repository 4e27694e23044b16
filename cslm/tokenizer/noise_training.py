"""Teaches a trained speech tokenizer to make the units of clean speech of noisy speech too.

Its own units of each recording are the target for the same recording in a room, by another microphone, in
noise: so units keep their meaning, and the models that know them are still of use. Only what makes units
learns.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cslm.audio import SAMPLE_RATE, Samples
from cslm.loop import Checkpoint, begin_step, on_device
from cslm.optimizer import MuonAdamW
from cslm.precision import half_precision
from cslm.tokenizer.distortion import distort
from cslm.tokenizer.features import log_mel
from cslm.tokenizer.frame_file import FrameFile, Utterance
from cslm.tokenizer.model import MAKES_UNITS, TokenizerNetwork, padding_mask
from cslm.tokenizer.speech_tokenizer import SpeechTokenizer, collate
from cslm.units import FRAMES_PER_SECOND

LEARNING_RATE = 1.5e-3
CLEAN = 0.25
"""Share of the recordings that are heard as they are."""
CLIP = 5.0


@dataclass(frozen=True)
class NoiseRecipe:
    """How to train; the names are those of params.yaml."""

    noise_steps: int
    batch_seconds: float
    seed: int


def train_against_noise(
    tokenizer: SpeechTokenizer,
    sound: FrameFile,
    recipe: NoiseRecipe,
    checkpoint: Path,
    on_step: Callable[[int, float], None],
) -> None:
    """Muon with warm-up and a cosine to zero; `on_step(step, loss)` after each step.

    The loss is the mean squared distance, in levels of the quantiser, from where clean speech lies before it is
    rounded. The state is written to `checkpoint` every so often, and read from there if it exists (cslm.loop).

    Raises:
        ValueError: no utterance to train on.
    """
    if not sound.utterances:
        raise ValueError("no utterance to train on")
    network = tokenizer.network.eval()  # nothing is dropped: units are to be exact
    with on_device(network) as device, ThreadPoolExecutor() as pool:
        teacher = copy.deepcopy(network)
        learning = nn.ModuleList(network.get_submodule(name) for name in MAKES_UNITS)
        optimizer = MuonAdamW(learning, LEARNING_RATE, 0.0)
        state = Checkpoint(checkpoint, network=network, optimizer=optimizer)
        first = state.restore()
        batches = itertools.islice(sound.batches(recipe.batch_seconds, recipe.seed), first, None)
        for step, batch in zip(range(first, recipe.noise_steps), batches, strict=False):
            rng = begin_step(optimizer, step, recipe.noise_steps, LEARNING_RATE, recipe.seed)
            seeds = [rng.randrange(2**32) for _ in batch]
            clean, noisy = zip(
                *pool.map(lambda one, seed: _heard_twice(sound, one, seed), batch, seeds), strict=True
            )
            mels, lengths = (each.to(device) for each in collate(clean))
            with torch.inference_mode():
                wanted = _before_rounding(teacher, mels, lengths)
            bounded = _before_rounding(network, collate(noisy)[0].to(device), lengths)
            speech = ~padding_mask(lengths, bounded.shape[1])
            loss = (bounded - wanted)[speech].square().mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(learning.parameters(), CLIP)
            optimizer.step()
            state.after(step + 1)
            on_step(step + 1, loss.item())


def sound_file(path: Path) -> FrameFile:
    """A file for the samples of a corpus, in 16 bits of floating point: nothing is too loud for them."""
    return FrameFile(path, np.float16, frames_per_unit=SAMPLE_RATE // FRAMES_PER_SECOND)


def _heard_twice(sound: FrameFile, utterance: Utterance, seed: int) -> tuple[Tensor, Tensor]:
    """Features (t, 80) of an utterance, and of the same one distorted."""
    rng = np.random.default_rng(seed)
    samples: Samples = np.asarray(sound.read(utterance), np.float32)
    return log_mel(samples), log_mel(samples if rng.random() < CLEAN else distort(samples, rng))


def _before_rounding(network: TokenizerNetwork, mels: Tensor, lengths: Tensor) -> Tensor:
    """Mels (B, 4T, 80), lengths in units (B,) -> places between the quantiser's levels (B, T, D)."""
    with half_precision(device=mels.device.type):
        latents = network.to_quantizer(network.encode(mels, lengths)).float()
    bounded: Tensor = network.quantizer.bound(latents)
    return bounded
