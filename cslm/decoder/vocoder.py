"""Vocoders: features (log-mel and pitch) -> samples, whole or as a stream.

Two kinds, each a folder that names its kind in `config.json` as `model_type`:

    source_filter     a small causal ConvNeXt that filters pulses and noise (cslm.decoder.source) in spectra of
                      short windows (iSTFT as in Vocos, arXiv 2306.00814; a source as in HiFTNet, 2309.09493)
    speecht5_hifigan  HiFi-GAN (arXiv 2010.05646) in the format of transformers, so that published weights load
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from cslm.audio import SAMPLE_RATE
from cslm.decoder.causal import Block, CausalConv, Delay, Memory
from cslm.decoder.mel import BINS, HOP
from cslm.decoder.pitch import FEATURES
from cslm.decoder.source import EACH, LATE, NOISE_SAMPLES, STEP, STRETCH, Source, window
from cslm.decoder.weights import load_weights, save_weights

KERNEL = 7
EXPANSION = 3
LOUDEST = 5.0
"""Largest log gain of a filter."""
OVERLAP = 1.5
"""Sum of squared Hann windows at a quarter's hop."""
CONTEXT = 32
"""Mel frames on either side that reach HiFi-GAN's output."""


class VocoderStream(Protocol):
    """Samples of one answer, piece by piece."""

    def push(self, mel: Tensor) -> Tensor:
        """More frames of features (M, 82) -> the samples that are known now (n,)."""

    def finish(self) -> Tensor:
        """The rest: 256 samples a frame in all."""


class SourceFilterVocoder(nn.Module):
    """Filters pulses at the speaker's pitch, and noise, window by window; overlap and add make samples."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.config = {"model_type": "source_filter", "width": width, "layers": layers}
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("scale", torch.ones(FEATURES))
        self.entry = CausalConv(FEATURES, width, KERNEL)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, EXPANSION, KERNEL, 1) for _ in range(layers))
        self.last_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, EACH * 3 * (STRETCH // 2 + 1))

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, M, 82) -> samples (B, 256 M)."""
        behind = features[:, -1:].expand(-1, LATE, -1)
        position: Tensor | int = 0
        if self.training:
            position = torch.randint(NOISE_SAMPLES, (len(features), 1), device=features.device)
        stretches = self.stretches(torch.cat([features, behind], 1), Source(position))
        added = overlap_add(stretches[:, EACH * LATE :])
        return added[:, STRETCH // 2 : STRETCH // 2 + features.shape[1] * HOP]

    def stretches(self, features: Tensor, source: Source, memory: Memory | None = None) -> Tensor:
        """(B, M, 82) -> windowed stretches of samples (B, 2 M, 512), `LATE` frames late."""
        x = self.entry(((features - self.mean) / self.scale).transpose(1, 2), memory).transpose(1, 2)
        x = self.norm(x)
        for block in self.blocks:
            x = block(x, memory)
        filters = self.head(self.last_norm(x)).float().unflatten(-1, (EACH, -1)).flatten(1, 2)
        gain, phase, breath = filters.chunk(3, -1)
        pulses, noise = source.push(features[..., BINS:])
        spectrum = pulses * torch.polar(gain.clamp_max(LOUDEST).exp(), phase)
        spectrum = spectrum + noise * breath.clamp_max(LOUDEST).exp()
        stretches: Tensor = torch.fft.irfft(spectrum, STRETCH)
        return stretches * window().to(stretches.device)

    def stream(self) -> VocoderStream:
        """Begin an answer."""
        return _SourceFilterStream(self)

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors (cslm.decoder.weights)."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config, indent=1) + "\n", "utf-8")
        save_weights(self.state_dict(), folder / "model.safetensors")


def overlap_add(stretches: Tensor) -> Tensor:
    """(B, W, 512) -> (B, 128 (W - 1) + 512)."""
    length = STEP * (stretches.shape[1] - 1) + STRETCH
    added = F.fold(stretches.transpose(1, 2), (1, length), (1, STRETCH), stride=(1, STEP))
    return added[:, 0, 0] / OVERLAP


class _SourceFilterStream:
    def __init__(self, vocoder: SourceFilterVocoder) -> None:
        self._vocoder, self._memory, self._delay = vocoder, Memory(), Delay(EACH * LATE)
        self._source = Source()
        self._tail = torch.zeros(STRETCH - STEP)
        self._early = STRETCH // 2
        self._last: Tensor | None = None

    def push(self, features: Tensor) -> Tensor:
        if not len(features):
            return torch.zeros(0)
        self._last = features[-1:]
        stretches = self._vocoder.stretches(features[None], self._source, self._memory)
        stretches = self._delay.cut(stretches)
        if not stretches.shape[1]:
            return torch.zeros(0)
        added = overlap_add(stretches)[0]
        added[: len(self._tail)] += self._tail
        known, self._tail = added[: -len(self._tail)], added[-len(self._tail) :]
        early = min(self._early, len(known))
        self._early -= early
        return known[early:]

    def finish(self) -> Tensor:
        if self._last is None:
            return torch.zeros(0)
        rest = self.push(self._last.expand(LATE, -1))
        return torch.cat([rest, self._tail[: STRETCH // 2]])


class HifiGanVocoder(nn.Module):
    """HiFi-GAN's generator."""

    def __init__(self, generator: SpeechT5HifiGan) -> None:
        super().__init__()
        self.generator = generator

    @classmethod
    def of_size(cls, channels: int) -> HifiGanVocoder:
        """Random weights; 512 channels are HiFi-GAN V1, 128 are V2."""
        config = SpeechT5HifiGanConfig(upsample_initial_channel=channels)
        return cls(SpeechT5HifiGan(config))

    @property
    def mean(self) -> Tensor:
        """Mean of each mel bin."""
        return self.generator.mean

    @property
    def scale(self) -> Tensor:
        """Deviation of each mel bin."""
        return self.generator.scale

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, M, 82), whose mel is all that it reads -> samples (B, 256 M)."""
        return self.generator(features[..., :BINS])  # type: ignore[no-any-return]

    def stream(self) -> VocoderStream:
        """Begin an answer."""
        return _HifiGanStream(self)

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors (float32, as transformers reads them)."""
        self.generator.save_pretrained(folder)


class _HifiGanStream:
    """Runs the generator over what is new with `CONTEXT` frames on either side."""

    def __init__(self, vocoder: HifiGanVocoder) -> None:
        self._vocoder = vocoder
        self._features = torch.zeros(0, FEATURES)
        self._done = 0

    def push(self, features: Tensor) -> Tensor:
        self._features = torch.cat([self._features, features])
        return self._until(len(self._features) - CONTEXT)

    def finish(self) -> Tensor:
        return self._until(len(self._features))

    def _until(self, end: int) -> Tensor:
        if end <= self._done:
            return torch.zeros(0)
        samples: Tensor = self._vocoder(self._features[None])[0, self._done * HOP : end * HOP]
        kept = max(0, end - CONTEXT)
        self._features, self._done = self._features[kept:], end - kept
        return samples


Vocoder = SourceFilterVocoder | HifiGanVocoder


def load_vocoder(folder: Path) -> Vocoder:
    """Open a vocoder of either kind.

    Raises:
        FileNotFoundError: the folder has no config.json or model.safetensors.
        ValueError: the kind is unknown, or it is of another audio format than the decoder's.
    """
    config: Mapping[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    kind = config.get("model_type")
    if kind == "source_filter":
        vocoder = SourceFilterVocoder(config["width"], config["layers"])
        vocoder.load_state_dict(load_weights(folder / "model.safetensors"))
        return vocoder.eval()
    if kind == "speecht5_hifigan":
        generator = SpeechT5HifiGan.from_pretrained(folder, use_safetensors=True)
        hop = torch.tensor(generator.config.upsample_rates).prod().item()
        found = generator.config.model_in_dim, hop, generator.config.sampling_rate
        if found != (BINS, HOP, SAMPLE_RATE):
            raise ValueError(
                f"{folder}: a vocoder for {BINS} mel bins, {HOP} samples a frame and {SAMPLE_RATE} Hz is "
                "needed, and it is for {}, {} and {}".format(*found)
            )
        return HifiGanVocoder(generator).eval()
    raise ValueError(f"{folder}: vocoder {kind!r} is unknown; allowed: source_filter, speecht5_hifigan")
