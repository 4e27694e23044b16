"""Duration predictor: how many frames each merged unit lasts.

The loss is in the log domain (FastSpeech, arXiv 1905.09263, section 3.3), so what is learnt is the typical
duration. `calibrate` scales it so that, rounded to whole frames, it errs least. Where durations can be
foreseen, that keeps the length of speech too; where they cannot, a scale that gives the length back would put
it in the wrong places, and speech a few per cent too short is better understood (benchmarks/log.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cslm.decoder.causal import Block, Delay, Memory

AHEAD = 2
"""Units that the predictor looks ahead."""
KERNEL = 5
LONGEST = 50
"""Frames (2 s) that one unit may last at most."""
SCALES = sorted((0.5 + 0.02 * step for step in range(126)), key=lambda scale: abs(scale - 1))
"""Those that are tried: 1, and its neighbours from 0.5 to 3."""


class DurationPredictor(nn.Module):
    """Merged units and a voice -> frames of each unit."""

    scale: Tensor

    def __init__(self, units: int, voices: int, width: int, layers: int) -> None:
        super().__init__()
        self.silence = units
        self.units = nn.Embedding(units + 1, width)
        self.voices = nn.Embedding(voices, width)
        self.blocks = nn.ModuleList(Block(width, 2, KERNEL, 1) for _ in range(layers))
        self.head = nn.Linear(width, 1)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, units: Tensor, voice: Tensor) -> Tensor:
        """(B, U) units, (B,) voices -> log of the durations in frames (B, U), not calibrated."""
        silence = units.new_full((len(units), AHEAD), self.silence)
        return self._logs(torch.cat([units, silence], 1), voice, None)[:, AHEAD:]

    def _logs(self, units: Tensor, voice: Tensor, memory: Memory | None) -> Tensor:
        x = self.units(units) + self.voices(voice)[:, None]
        for block in self.blocks:
            x = block(x, memory)
        return self.head(x)[..., 0]  # type: ignore[no-any-return]

    def calibrate(self, logs: Tensor, durations: Tensor) -> float:
        """Choose the scale of least mean absolute error over units (U,); predicted over true length in sum."""
        errors = []
        for scale in SCALES:
            self.scale.fill_(scale)
            errors.append((self.frames(logs) - durations).abs().sum().item())
        self.scale.fill_(SCALES[errors.index(min(errors))])
        return float(self.frames(logs).sum() / durations.sum())

    def frames(self, logs: Tensor) -> Tensor:
        """Logs of durations, of any shape -> whole frames, at least one and at most `LONGEST`."""
        return (logs.exp() * self.scale).round().clamp(1, LONGEST).long()


class DurationStream:
    """Durations of the units of one answer, piece by piece."""

    def __init__(self, predictor: DurationPredictor, voice: int) -> None:
        self._predictor, self._voice = predictor, torch.tensor([voice])
        self._memory, self._delay = Memory(), Delay(AHEAD)
        self._waiting: list[int] = []

    def push(self, units: list[int]) -> tuple[list[int], list[int]]:
        """More units -> the units whose durations are known now, and those durations."""
        self._waiting += units
        return self._known(torch.tensor([units], dtype=torch.long))

    def finish(self) -> tuple[list[int], list[int]]:
        """The rest."""
        return self._known(torch.full((1, AHEAD), self._predictor.silence))

    def _known(self, units: Tensor) -> tuple[list[int], list[int]]:
        if not units.numel():
            return [], []
        logs = self._predictor._logs(units, self._voice, self._memory)[..., None]
        frames: list[int] = self._predictor.frames(self._delay.cut(logs)[0, :, 0]).tolist()
        known, self._waiting = self._waiting[: len(frames)], self._waiting[len(frames) :]
        return known, frames[: len(known)]
