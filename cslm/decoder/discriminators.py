"""The judges that a vocoder is trained against: multi-period and multi-scale (HiFi-GAN, arXiv 2010.05646).

They are as in section 2.3 there, with fewer channels: a small generator on two cores cannot use more.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

PERIODS = (2, 3, 5, 7, 11)
SCALES = (1, 2, 4)
SLOPE = 0.1

Judgment = tuple[Tensor, list[Tensor]]
"""Scores of many places, and the features inside."""


class PeriodDiscriminator(nn.Module):
    """Looks at every `period`-th sample."""

    def __init__(self, period: int, channels: int) -> None:
        super().__init__()
        self.period = period
        sizes = [1, channels, 2 * channels, 4 * channels, 4 * channels]
        self.convolutions = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), (3, 1), (2, 0))) for a, b in itertools.pairwise(sizes)
        )
        self.last = weight_norm(nn.Conv2d(sizes[-1], 1, (3, 1), 1, (1, 0)))

    def forward(self, samples: Tensor) -> Judgment:
        """(B, n) samples -> its judgment."""
        whole = F.pad(samples, (0, -samples.shape[1] % self.period))
        x = whole.reshape(len(samples), 1, -1, self.period)
        return _judge(x, self.convolutions, self.last)


class ScaleDiscriminator(nn.Module):
    """Looks at the signal with `scale` samples averaged into one."""

    def __init__(self, scale: int, channels: int) -> None:
        super().__init__()
        self.scale = scale
        sizes = [1, channels, 2 * channels, 4 * channels, 4 * channels]
        self.convolutions = nn.ModuleList(
            weight_norm(
                nn.Conv1d(a, b, 15 if a == 1 else 21, 4, 7 if a == 1 else 10, groups=1 if a == 1 else 4)
            )
            for a, b in itertools.pairwise(sizes)
        )
        self.last = weight_norm(nn.Conv1d(sizes[-1], 1, 3, 1, 1))

    def forward(self, samples: Tensor) -> Judgment:
        """(B, n) samples -> its judgment."""
        x = samples[:, None]
        return _judge(F.avg_pool1d(x, self.scale) if self.scale > 1 else x, self.convolutions, self.last)


def _judge(x: Tensor, convolutions: nn.ModuleList, last: nn.Module) -> Judgment:
    features = []
    for convolution in convolutions:
        x = F.leaky_relu(convolution(x), SLOPE)
        features.append(x)
    return last(x), features


class Discriminators(nn.Module):
    """All of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.judges = nn.ModuleList(
            [PeriodDiscriminator(period, channels) for period in PERIODS]
            + [ScaleDiscriminator(scale, channels) for scale in SCALES]
        )

    def loss(self, real: Tensor, made: Tensor) -> Tensor:
        """Least squares: real samples (B, n) should score 1, made ones 0 (eq. 1)."""
        losses = [
            (1 - judge(real)[0]).square().mean() + judge(made)[0].square().mean() for judge in self.judges
        ]
        return torch.stack(losses).mean()

    def against(self, real: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
        """The generator's loss (eq. 2), and the distance of the features inside (eq. 4)."""
        deceived, distances = [], []
        for judge in self.judges:
            with torch.no_grad():
                _, wanted = judge(real)
            score, features = judge(made)
            deceived.append((1 - score).square().mean())
            distances += [(a - b).abs().mean() for a, b in zip(wanted, features, strict=True)]
        return torch.stack(deceived).mean(), torch.stack(distances).mean()
