"""The network: mel -> encoder -> quantiser -> decoder -> CTC.

Shapes: B utterances, T frames of 40 ms, H hidden, D quantiser dimensions, V labels.
Everything behind the quantiser sees units only, so labels can be aligned with stored units, without audio.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cslm.tokenizer.features import MEL_BINS
from cslm.tokenizer.quantizer import FiniteScalarQuantizer

SUBSAMPLING = 4
HEADS = 4
KERNEL = 15
DROPOUT = 0.1
READING = 2
"""Convolutions behind the quantiser; each sees one frame more to either side."""
MAKES_UNITS = ("subsample", "encoder", "to_quantizer")
"""The parts before the quantiser: what is behind it reads units."""


class TokenizerNetwork(nn.Module):
    """Conformer-like encoder of `layers` layers, a finite scalar bottleneck and a shallow CTC decoder.

    A unit has to say its sound by itself or with its neighbours: all context is used before the quantiser.
    """

    def __init__(self, hidden: int, layers: int, levels: Sequence[int], labels: int) -> None:
        super().__init__()
        self.subsample = nn.Sequential(
            nn.Conv1d(MEL_BINS, hidden, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv1d(hidden, hidden, 3, stride=2, padding=1),
            nn.GELU(),
        )
        self.encoder = nn.ModuleList(Layer(hidden) for _ in range(layers))
        # Without the norm the bound saturates in the first steps and every frame gets the same code.
        self.to_quantizer = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, len(levels)))
        self.quantizer = FiniteScalarQuantizer(levels)
        # CTC before the bottleneck too (arXiv 2102.03216): the encoder learns to hear before units carry it.
        self.early_head = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, labels))
        self.from_quantizer = nn.Linear(len(levels), hidden)
        # Shallow and local: what a deep decoder could work out from units, the language model would have to.
        self.decoder = nn.ModuleList(Reading(hidden) for _ in range(READING))
        self.head = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, labels))

    def codes(self, mels: Tensor, lengths: Tensor) -> Tensor:
        """mels (B, 4T, 80), lengths in units (B,) -> quantised codes (B, T, D)."""
        codes: Tensor = self.quantizer(self.to_quantizer(self.encode(mels, lengths)))
        return codes

    def encode(self, mels: Tensor, lengths: Tensor) -> Tensor:
        """mels (B, 4T, 80), lengths in units (B,) -> hidden states before the quantiser (B, T, H)."""
        x: Tensor = self.subsample(mels.transpose(1, 2)).transpose(1, 2)
        padding = padding_mask(lengths, x.shape[1])
        for layer in self.encoder:
            x = layer(x, padding)
        return x

    def log_probs(self, codes: Tensor, lengths: Tensor) -> Tensor:
        """codes (B, T, D) -> CTC log-probabilities (B, T, V)."""
        x = self.from_quantizer(codes)
        padding = padding_mask(lengths, x.shape[1])
        for layer in self.decoder:
            x = layer(x, padding)
        return F.log_softmax(self.head(x), -1)


class Layer(nn.Module):
    """Pre-norm self-attention, depthwise convolution and feed-forward, each with a residual."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.attention_out = nn.Linear(hidden, hidden)
        self.convolution_norm = nn.LayerNorm(hidden)
        self.gate = nn.Linear(hidden, 2 * hidden)
        self.depthwise = nn.Conv1d(hidden, hidden, KERNEL, padding=KERNEL // 2, groups=hidden)
        self.convolution_out = nn.Linear(hidden, hidden)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(hidden), nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden)
        )
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """x (B, T, H), padding (B, T) true behind the end -> (B, T, H)."""
        x = x + self.dropout(self._attend(self.attention_norm(x), padding))
        x = x + self.dropout(self._convolve(self.convolution_norm(x), padding))
        out: Tensor = x + self.dropout(self.feed_forward(x))
        return out

    def _attend(self, x: Tensor, padding: Tensor) -> Tensor:
        batch, time, hidden = x.shape
        q, k, v = self.qkv(x).view(batch, time, 3, HEADS, hidden // HEADS).permute(2, 0, 3, 1, 4)
        mask = ~padding[:, None, None, :]
        y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, attn_mask=mask)
        out: Tensor = self.attention_out(y.transpose(1, 2).reshape(batch, time, hidden))
        return out

    def _convolve(self, x: Tensor, padding: Tensor) -> Tensor:
        x = F.glu(self.gate(x), -1).masked_fill(padding[..., None], 0)
        x = F.silu(self.depthwise(x.transpose(1, 2)).transpose(1, 2))
        out: Tensor = self.convolution_out(x)
        return out


class Reading(nn.Module):
    """A convolution over three frames and a feed-forward layer, with a residual."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.convolution = nn.Conv1d(hidden, 2 * hidden, 3, padding=1)
        self.out = nn.Linear(2 * hidden, hidden)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """x (B, T, H), padding (B, T) true behind the end -> (B, T, H)."""
        y = self.norm(x).masked_fill(padding[..., None], 0)
        y = F.gelu(self.convolution(y.transpose(1, 2)).transpose(1, 2))
        out: Tensor = x + self.dropout(self.out(y))
        return out


def take_over(network: nn.Module, known: nn.Module) -> None:
    """Give `network`, which is `known` with more labels, its weights; those of new labels are zero."""
    weights = network.state_dict()
    for name, weight in known.state_dict().items():
        weights[name].zero_()
        weights[name][: len(weight)] = weight


def padding_mask(lengths: Tensor, time: int) -> Tensor:
    """lengths (B,) -> (B, time), true where there is no frame."""
    return torch.arange(time, device=lengths.device)[None, :] >= lengths[:, None]


def rotate(x: Tensor) -> Tensor:
    """Rotary positions (arXiv 2104.09864) on x (B, heads, T, d)."""
    time, size = x.shape[-2], x.shape[-1] // 2
    frequency = 10_000 ** (-torch.arange(size, device=x.device) / size)
    angle = torch.arange(time, device=x.device)[:, None] * frequency
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)
