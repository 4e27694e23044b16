"""Conditional flow matching: frames of units and a voice -> pitch and log-mel spectrogram.

Optimal-transport paths from noise to speech (Lipman et al., arXiv 2210.02747, eq. 22) with a prior from the
units (as in Matcha-TTS, arXiv 2309.03199); classifier-free guidance (arXiv 2207.12598); Euler steps on a
cosine schedule (CosyVoice, arXiv 2407.05407, section 2.3). The pitch is foretold by regression, and the mel is
made to it (FastSpeech 2, arXiv 2006.04558, section 2.3), so that what is left to the flow is an envelope. All
layers are causal, and the units are read `AHEAD` frames ahead, so that a stream of chunks gives what the whole
answer at once would give.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cslm.decoder.causal import Block, Delay, Memory
from cslm.decoder.mel import BINS
from cslm.decoder.pitch import FEATURES, HIGHEST, LOWEST, VOICED

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
CONTOUR_WIDTH, CONTOUR_LAYERS = 96, 2


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
        self.contour_entry = nn.Linear(width, CONTOUR_WIDTH)
        self.contour = nn.ModuleList(
            Block(CONTOUR_WIDTH, EXPANSION, KERNEL, 1, CONDITION) for _ in range(CONTOUR_LAYERS)
        )
        self.contour_exit = nn.Linear(CONTOUR_WIDTH, FEATURES - BINS)
        self.entry = nn.Linear(BINS + FEATURES + width, width)
        self.time = nn.Sequential(nn.Linear(CONDITION, CONDITION), nn.SiLU(), nn.Linear(CONDITION, CONDITION))
        self.estimator = nn.ModuleList(
            Block(width, EXPANSION, KERNEL, DILATIONS[layer % len(DILATIONS)], CONDITION)
            for layer in range(layers)
        )
        self.exit = nn.Linear(width, BINS)
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("deviation", torch.ones(FEATURES))

    @torch.no_grad()
    def choose_voices(self, voices: Sequence[int]) -> None:
        """Know these of the voices, in this order; a voice that is named twice becomes two that learn apart."""
        kept = self.voices.weight[[*voices, self.nobody]]
        self.voices.weight = nn.Parameter(kept)
        self.voices.num_embeddings, self.nobody = len(kept), len(voices)

    def normalize(self, features: Tensor) -> Tensor:
        """Each with mean 0 and deviation 1 over the training data."""
        return (features - self.mean) / self.deviation

    def encode(self, frames: Tensor, voice: Tensor, memory: Memory | None = None) -> Tensor:
        """(B, T) unit frames -> (B, T, width), `AHEAD` frames late."""
        x, condition = self.units(frames), self.voices(voice)
        for block in self.encoder:
            x = block(x, memory, condition)
        return x  # type: ignore[no-any-return]

    def spread(self, encoded: Tensor, first: int) -> Tensor:
        """(B, T, width) at unit frames `first`... -> (B, mel frames that begin in them, width)."""
        last = first + encoded.shape[1]
        wanted = torch.arange(mel_frames(first), mel_frames(last), device=encoded.device)
        up, down = RATIO
        phase: Tensor = self.phases(wanted % up)
        return encoded[:, wanted * down // up - first] + phase

    def pitch(self, encoded: Tensor, voice: Tensor, memory: Memory | None = None) -> Tensor:
        """The spread encoder's output (B, M, width) -> pitch and voicing (B, M, 2), normalized."""
        condition = self.voices(voice)
        y = self.contour_entry(encoded)
        for block in self.contour:
            y = block(y, memory, condition)
        return self.contour_exit(y)  # type: ignore[no-any-return]

    def velocity(
        self, x: Tensor, time: Tensor, given: Tensor, voice: Tensor, memory: Memory | None = None
    ) -> Tensor:
        """The flow (B, M, 80) at x (B, M, 80) and time (B,); given are prior, pitch, and encoded units."""
        condition = self.voices(voice) + self.time(_sinusoids(time))
        y = self.entry(torch.cat([x, given], -1))
        for block in self.estimator:
            y = block(y, memory, condition)
        return self.exit(y)  # type: ignore[no-any-return]

    def loss(self, frames: Tensor, lengths: Tensor, features: Tensor, voice: Tensor) -> dict[str, Tensor]:
        """Mean squared errors of flow, prior, pitch and voicing.

        Unit frames (B, T), how many of each row are real (B,), features (B, M, 82), voices (B,).
        """
        # Silence follows each row, as it does when an answer is spoken.
        padding = torch.arange(frames.shape[1], device=frames.device) >= lengths[:, None]
        frames = frames.masked_fill(padding, self.silence)
        silence = frames.new_full((len(frames), AHEAD), self.silence)
        encoded = self.encode(torch.cat([frames, silence], 1), voice)[:, AHEAD:]
        encoded = self.spread(encoded, 0)
        normal = self.normalize(features)
        target, pitch = normal[..., :BINS], normal[..., BINS:]
        inside = (
            torch.arange(features.shape[1], device=features.device)[None]
            < torch.div(lengths * RATIO[0], RATIO[1], rounding_mode="floor")[:, None]
        ).float()
        sounding = inside * features[..., -1]
        wrong = (self.pitch(encoded, voice) - pitch).square()
        prior = self.prior(encoded)
        dropped = torch.rand(len(frames), device=frames.device) < DROPPED
        given = torch.cat([prior, pitch, encoded], -1) * ~dropped[:, None, None]
        voice = torch.where(dropped, self.nobody, voice)
        noise = torch.randn_like(target)
        time = torch.rand(len(frames), device=frames.device)
        t = time[:, None, None]
        x = (1 - (1 - SIGMA) * t) * noise + t * target
        error = self.velocity(x, time, given, voice) - (target - (1 - SIGMA) * noise)
        return {
            "flow": _mean(error.square().mean(-1), inside),
            "prior": _mean((prior - target).square().mean(-1), inside),
            "pitch": _mean(wrong[..., 0], sounding),
            "voicing": _mean(wrong[..., 1], inside),
        }


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp_min(1)


def mel_frames(frames: int) -> int:
    """Mel frames that begin within so many unit frames."""
    return -(-frames * RATIO[0] // RATIO[1])


class FeatureStream:
    """Mel and pitch of one answer in one voice, piece by piece."""

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
        self._held = model.mean[None, BINS : BINS + 1]
        self._frames = 0

    def push(self, frames: Tensor) -> Tensor:
        """More unit frames (T,) -> the features that are known now (M, 82)."""
        if not len(frames):
            return torch.zeros(0, FEATURES)
        encoded = self._delay.cut(self._model.encode(frames[None], self._voice, self._encoder))
        first, self._frames = self._frames, self._frames + encoded.shape[1]
        if not encoded.shape[1]:
            return torch.zeros(0, FEATURES)
        return self._sample(self._model.spread(encoded, first), mel_frames(first))

    def finish(self) -> Tensor:
        """The rest."""
        return self.push(torch.full((AHEAD,), self._model.silence))

    def _sample(self, encoded: Tensor, first: int) -> Tensor:
        model = self._model
        pitch = self._pitch(model.pitch(encoded, self._voice, self._encoder))
        normal = (pitch - model.mean[BINS:]) / model.deviation[BINS:]
        told = torch.cat([model.prior(encoded), normal, encoded], -1)
        given = torch.cat([told, torch.zeros_like(told)])
        x = self._noise[torch.arange(first, first + encoded.shape[1]) % NOISE_FRAMES][None]
        for begin, end, memory in zip(self._times[:-1], self._times[1:], self._steps, strict=True):
            time = torch.full((2,), begin)
            guided, free = model.velocity(x.expand(2, -1, -1), time, given, self._both, memory)
            x = x + (end - begin) * (guided + self._guidance * (guided - free))
        mel = x[0] * model.deviation[:BINS] + model.mean[:BINS]
        return torch.cat([mel, pitch[0]], -1)

    def _pitch(self, normal: Tensor) -> Tensor:
        """Log2 of hertz within the range of voices, and 0 or 1.

        Nothing has taught the network a pitch of unvoiced frames: there the last one stays.
        """
        model = self._model
        logarithm, certain = (normal * model.deviation[BINS:] + model.mean[BINS:]).unbind(-1)
        within = logarithm.clamp(math.log2(LOWEST), math.log2(HIGHEST))
        known = torch.cat([self._held, within], 1)
        voiced = certain > VOICED
        last = torch.where(voiced, torch.arange(1, known.shape[1]), 0).cummax(1).values
        pitch = known.gather(1, last)
        self._held = pitch[:, -1:]
        return torch.stack([pitch, voiced.float()], -1)


@functools.cache
def noise() -> Tensor:
    """The same noise (frames, 80) for every answer: equal units in an equal voice sound equal."""
    with torch.inference_mode(False):
        return torch.randn(NOISE_FRAMES, BINS, generator=torch.Generator().manual_seed(0))


def _sinusoids(time: Tensor) -> Tensor:
    """(B,) in [0, 1] -> (B, CONDITION)."""
    half = CONDITION // 2
    angles = time[:, None] * 1000 * torch.exp(-math.log(10_000) * torch.arange(half, device=time.device) / half)
    return torch.cat([angles.sin(), angles.cos()], -1)
