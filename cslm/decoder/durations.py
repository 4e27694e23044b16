"""Duration predictor: how many frames each merged unit lasts.

The loss is in the log domain (FastSpeech, arXiv 1905.09263, section 3.3), so what is learnt is the typical
duration, which is shorter than the mean one; `calibrate` makes up for that. Rounding to whole frames carries
its remainder on, so a long answer is as long as its durations say.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cslm.decoder.causal import Block, Delay, Memory

AHEAD = 2
"""Units that the predictor looks ahead."""
KERNEL = 5
LONGEST = 50
"""Frames (2 s) that one unit may last at most."""


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

    def calibrate(self, true: float, predicted: float) -> None:
        """Let all durations last `true` frames in sum, where they last `predicted` now."""
        self.scale *= true / predicted


class DurationStream:
    """Durations of the units of one answer, piece by piece."""

    def __init__(self, predictor: DurationPredictor, voice: int) -> None:
        self._predictor, self._voice = predictor, torch.tensor([voice])
        self._memory, self._delay = Memory(), Delay(AHEAD)
        self._waiting: list[int] = []
        self._exact, self._given = 0.0, 0

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
        frames = (self._delay.cut(logs)[0, :, 0].exp() * self._predictor.scale).tolist()
        known, self._waiting = self._waiting[: len(frames)], self._waiting[len(frames) :]
        return known, [self._whole(each) for each in frames[: len(known)]]

    def _whole(self, frames: float) -> int:
        self._exact += min(frames, LONGEST)
        whole = max(1, math.floor(self._exact - self._given + 0.5))
        self._given += whole
        return whole
