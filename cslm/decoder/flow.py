"""Conditional flow matching: frames of units and a voice -> log-mel spectrogram.

Optimal-transport paths from noise to speech (Lipman et al., arXiv 2210.02747, eq. 22) with a prior from the
units (as in Matcha-TTS, arXiv 2309.03199); classifier-free guidance (arXiv 2207.12598); Euler steps on a
cosine schedule (CosyVoice, arXiv 2407.05407, section 2.3). All layers are causal, and the units are read
`AHEAD` frames ahead, so that a stream of chunks gives the same mel as the whole answer at once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cslm.decoder.causal import Block, Delay, Memory
from cslm.decoder.mel import BINS

AHEAD = 4
"""Unit frames (160 ms) that the encoder looks ahead."""
RATIO = (5, 2)
"""Five mel frames (16 ms) to two unit frames (40 ms)."""
KERNEL = 7
EXPANSION = 2
DILATIONS = (1, 2, 4, 8)
CONDITION = 64
SIGMA = 1e-4
DROPPED = 0.15
"""Share of the training examples without condition, for the guidance."""
NOISE_FRAMES = 4096


class FlowMatching(nn.Module):
    """Encoder of units, and the estimator of the flow's velocity."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, units: int, voices: int, width: int, encoder_layers: int, layers: int) -> None:
        super().__init__()
        self.silence, self.nobody = units, voices
        self.units = nn.Embedding(units + 1, width)
        self.phases = nn.Embedding(RATIO[0], width)
        self.voices = nn.Embedding(voices + 1, CONDITION)
        self.encoder = nn.ModuleList(
            Block(width, EXPANSION, KERNEL, 1, CONDITION) for _ in range(encoder_layers)
        )
        self.prior = nn.Linear(width, BINS)
        self.entry = nn.Linear(2 * BINS + width, width)
        self.time = nn.Sequential(nn.Linear(CONDITION, CONDITION), nn.SiLU(), nn.Linear(CONDITION, CONDITION))
        self.estimator = nn.ModuleList(
            Block(width, EXPANSION, KERNEL, DILATIONS[layer % len(DILATIONS)], CONDITION)
            for layer in range(layers)
        )
        self.exit = nn.Linear(width, BINS)
        self.register_buffer("mean", torch.zeros(BINS))
        self.register_buffer("deviation", torch.ones(BINS))

    @torch.no_grad()
    def choose_voices(self, voices: Sequence[int]) -> None:
        """Know these of the voices, in this order; a voice that is named twice becomes two that learn apart."""
        kept = self.voices.weight[[*voices, self.nobody]]
        self.voices.weight = nn.Parameter(kept)
        self.voices.num_embeddings, self.nobody = len(kept), len(voices)

    def normalize(self, mel: Tensor) -> Tensor:
        """Each bin with mean 0 and deviation 1 over the training data."""
        return (mel - self.mean) / self.deviation

    def encode(self, frames: Tensor, voice: Tensor, memory: Memory | None = None) -> Tensor:
        """(B, T) unit frames -> (B, T, width), `AHEAD` frames late."""
        x, condition = self.units(frames), self.voices(voice)
        for block in self.encoder:
            x = block(x, memory, condition)
        return x  # type: ignore[no-any-return]

    def spread(self, encoded: Tensor, first: int) -> Tensor:
        """(B, T, width) at unit frames `first`... -> (B, mel frames that begin in them, width)."""
        wanted = torch.arange(mel_frames(first), mel_frames(first + encoded.shape[1]))
        up, down = RATIO
        phase: Tensor = self.phases(wanted % up)
        return encoded[:, wanted * down // up - first] + phase

    def velocity(
        self, x: Tensor, time: Tensor, encoded: Tensor, voice: Tensor, memory: Memory | None = None
    ) -> Tensor:
        """The flow (B, M, 80) at x (B, M, 80) and time (B,), given the spread encoder's output."""
        condition = self.voices(voice) + self.time(_sinusoids(time))
        y = self.entry(torch.cat([x, self.prior(encoded), encoded], -1))
        for block in self.estimator:
            y = block(y, memory, condition)
        return self.exit(y)  # type: ignore[no-any-return]

    def loss(self, frames: Tensor, lengths: Tensor, mel: Tensor, voice: Tensor) -> tuple[Tensor, Tensor]:
        """Flow and prior loss a mel bin: frames (B, T), lengths (B,) in frames, log10 mel (B, 5T/2, 80)."""
        silence = frames.new_full((len(frames), AHEAD), self.silence)
        encoded = self.encode(torch.cat([frames, silence], 1), voice)[:, AHEAD:]
        encoded = self.spread(encoded, 0)
        target = self.normalize(mel)
        inside = (
            torch.arange(mel.shape[1])[None]
            < torch.div(lengths * RATIO[0], RATIO[1], rounding_mode="floor")[:, None]
        )
        prior = ((self.prior(encoded) - target).square().mean(-1) * inside).sum() / inside.sum()
        dropped = torch.rand(len(frames)) < DROPPED
        encoded = encoded * ~dropped[:, None, None]
        voice = torch.where(dropped, self.nobody, voice)
        noise = torch.randn_like(target)
        time = torch.rand(len(frames))
        t = time[:, None, None]
        x = (1 - (1 - SIGMA) * t) * noise + t * target
        error = self.velocity(x, time, encoded, voice) - (target - (1 - SIGMA) * noise)
        flow = (error.square().mean(-1) * inside).sum() / inside.sum()
        return flow, prior


def mel_frames(frames: int) -> int:
    """Mel frames that begin within so many unit frames."""
    return -(-frames * RATIO[0] // RATIO[1])


class MelStream:
    """The mel of one answer in one voice, piece by piece."""

    def __init__(
        self, model: FlowMatching, voice: int, steps: int, guidance: float, temperature: float
    ) -> None:
        self._model, self._guidance = model, guidance
        self._voice = torch.tensor([voice])
        self._both = torch.tensor([voice, model.nobody])
        self._noise = noise() * temperature
        self._times = [1 - math.cos(math.pi / 2 * step / steps) for step in range(steps + 1)]
        self._encoder, self._delay = Memory(), Delay(AHEAD)
        self._steps = [Memory() for _ in range(steps)]
        self._frames = 0

    def push(self, frames: Tensor) -> Tensor:
        """More unit frames (T,) -> the log10 mel that is known now (M, 80)."""
        if not len(frames):
            return torch.zeros(0, BINS)
        encoded = self._delay.cut(self._model.encode(frames[None], self._voice, self._encoder))
        first, self._frames = self._frames, self._frames + encoded.shape[1]
        if not encoded.shape[1]:
            return torch.zeros(0, BINS)
        return self._sample(self._model.spread(encoded, first), mel_frames(first))

    def finish(self) -> Tensor:
        """The rest."""
        return self.push(torch.full((AHEAD,), self._model.silence))

    def _sample(self, encoded: Tensor, first: int) -> Tensor:
        model = self._model
        given = torch.cat([encoded, torch.zeros_like(encoded)])
        x = self._noise[torch.arange(first, first + encoded.shape[1]) % NOISE_FRAMES][None]
        for begin, end, memory in zip(self._times[:-1], self._times[1:], self._steps, strict=True):
            time = torch.full((2,), begin)
            told, untold = model.velocity(x.expand(2, -1, -1), time, given, self._both, memory)
            x = x + (end - begin) * (told + self._guidance * (told - untold))
        return x[0] * model.deviation + model.mean


@functools.cache
def noise() -> Tensor:
    """The same noise (frames, 80) for every answer: equal units in an equal voice sound equal."""
    with torch.inference_mode(False):
        return torch.randn(NOISE_FRAMES, BINS, generator=torch.Generator().manual_seed(0))


def _sinusoids(time: Tensor) -> Tensor:
    """(B,) in [0, 1] -> (B, CONDITION)."""
    half = CONDITION // 2
    angles = time[:, None] * 1000 * torch.exp(-math.log(10_000) * torch.arange(half) / half)
    return torch.cat([angles.sin(), angles.cos()], -1)
