"""Vocoders: log-mel -> samples, whole or as a stream.

Two kinds, each a folder that names its kind in `config.json` as `model_type`:

    istft             a small causal ConvNeXt that writes the spectrum of each frame (Vocos, arXiv 2306.00814)
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

from cslm.decoder.causal import Block, CausalConv, Delay, Memory
from cslm.decoder.mel import BINS, HOP, WINDOW, window
from cslm.decoder.weights import load_weights, save_weights

AHEAD = 3
"""Mel frames (48 ms) that the iSTFT vocoder looks ahead."""
KERNEL = 7
EXPANSION = 3
LOUDEST = 5.0
"""Largest log magnitude of a spectral bin: a full-scale tone has log(512 / 2)."""
OVERLAP = 1.5
"""Sum of squared Hann windows at a quarter's hop."""
CONTEXT = 32
"""Mel frames on either side that reach HiFi-GAN's output."""


class VocoderStream(Protocol):
    """Samples of one answer, piece by piece."""

    def push(self, mel: Tensor) -> Tensor:
        """More mel frames (M, 80) -> the samples that are known now (n,)."""

    def finish(self) -> Tensor:
        """The rest: 256 samples a mel frame in all."""


class Vocoder(Protocol):
    """What both kinds can do."""

    mean: Tensor
    scale: Tensor

    def __call__(self, mel: Tensor) -> Tensor:
        """log10 mel (B, M, 80) -> samples (B, 256 M)."""

    def stream(self) -> VocoderStream:
        """Begin an answer."""

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors."""


class IstftVocoder(nn.Module):
    """Writes magnitude and phase of each frame; overlap and add make samples of them."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.config = {"model_type": "istft", "width": width, "layers": layers}
        self.register_buffer("mean", torch.zeros(BINS))
        self.register_buffer("scale", torch.ones(BINS))
        self.entry = CausalConv(BINS, width, KERNEL)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, EXPANSION, KERNEL, 1) for _ in range(layers))
        self.last_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, WINDOW + 2)

    def forward(self, mel: Tensor) -> Tensor:
        """log10 mel (B, M, 80) -> samples (B, 256 M)."""
        behind = mel[:, -1:].expand(-1, AHEAD, -1)
        frames = self.frames(torch.cat([mel, behind], 1))[:, AHEAD:]
        added = overlap_add(frames)
        return added[:, WINDOW // 2 : WINDOW // 2 + mel.shape[1] * HOP]

    def frames(self, mel: Tensor, memory: Memory | None = None) -> Tensor:
        """(B, M, 80) -> windowed stretches of samples (B, M, 1024), `AHEAD` frames late."""
        x = self.entry(((mel - self.mean) / self.scale).transpose(1, 2), memory).transpose(1, 2)
        x = self.norm(x)
        for block in self.blocks:
            x = block(x, memory)
        magnitude, phase = self.head(self.last_norm(x)).float().chunk(2, -1)
        stretches: Tensor = torch.fft.irfft(torch.polar(magnitude.clamp_max(LOUDEST).exp(), phase), WINDOW)
        return stretches * window()

    def stream(self) -> VocoderStream:
        """Begin an answer."""
        return _IstftStream(self)

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors (cslm.decoder.weights)."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config, indent=1) + "\n", "utf-8")
        save_weights(self.state_dict(), folder / "model.safetensors")


def overlap_add(frames: Tensor) -> Tensor:
    """(B, M, 1024) -> (B, 256 (M - 1) + 1024)."""
    length = HOP * (frames.shape[1] - 1) + WINDOW
    added = F.fold(frames.transpose(1, 2), (1, length), (1, WINDOW), stride=(1, HOP))
    return added[:, 0, 0] / OVERLAP


class _IstftStream:
    def __init__(self, vocoder: IstftVocoder) -> None:
        self._vocoder, self._memory, self._delay = vocoder, Memory(), Delay(AHEAD)
        self._tail = torch.zeros(WINDOW - HOP)
        self._early = WINDOW // 2
        self._last: Tensor | None = None

    def push(self, mel: Tensor) -> Tensor:
        if not len(mel):
            return torch.zeros(0)
        self._last = mel[-1:]
        frames = self._delay.cut(self._vocoder.frames(mel[None], self._memory))
        if not frames.shape[1]:
            return torch.zeros(0)
        added = overlap_add(frames)[0]
        added[: len(self._tail)] += self._tail
        known, self._tail = added[: -len(self._tail)], added[-len(self._tail) :]
        early = min(self._early, len(known))
        self._early -= early
        return known[early:]

    def finish(self) -> Tensor:
        if self._last is None:
            return torch.zeros(0)
        rest = self.push(self._last.expand(AHEAD, -1))
        return torch.cat([rest, self._tail[: WINDOW // 2]])


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

    def forward(self, mel: Tensor) -> Tensor:
        """log10 mel (B, M, 80) -> samples (B, 256 M)."""
        return self.generator(mel)  # type: ignore[no-any-return]

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
        self._mel = torch.zeros(0, BINS)
        self._done = 0

    def push(self, mel: Tensor) -> Tensor:
        self._mel = torch.cat([self._mel, mel])
        return self._until(len(self._mel) - CONTEXT)

    def finish(self) -> Tensor:
        return self._until(len(self._mel))

    def _until(self, end: int) -> Tensor:
        if end <= self._done:
            return torch.zeros(0)
        samples: Tensor = self._vocoder(self._mel[None])[0, self._done * HOP : end * HOP]
        kept = max(0, end - CONTEXT)
        self._mel, self._done = self._mel[kept:], end - kept
        return samples


def load_vocoder(folder: Path) -> IstftVocoder | HifiGanVocoder:
    """Open a vocoder of either kind.

    Raises:
        FileNotFoundError: the folder has no config.json or model.safetensors.
        ValueError: the kind is unknown, or it is of another audio format than the decoder's.
    """
    config: Mapping[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    kind = config.get("model_type")
    if kind == "istft":
        vocoder = IstftVocoder(config["width"], config["layers"])
        vocoder.load_state_dict(load_weights(folder / "model.safetensors"))
        return vocoder.eval()
    if kind == "speecht5_hifigan":
        generator = SpeechT5HifiGan.from_pretrained(folder, use_safetensors=True)
        hop = torch.tensor(generator.config.upsample_rates).prod().item()
        if (generator.config.model_in_dim, hop) != (BINS, HOP):
            raise ValueError(f"{folder}: a vocoder for {BINS} mel bins and {HOP} samples a frame is needed")
        return HifiGanVocoder(generator).eval()
    raise ValueError(f"{folder}: vocoder {kind!r} is unknown; allowed: istft, speecht5_hifigan")
