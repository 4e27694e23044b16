"""Long speech in windows: cut in its pauses, heard with context on both sides, put together again.

    begin      end
      |   kept  |          a window hears CONTEXT units more than are kept of it, on either side that has any:
  |~~~|---------|~~~|      a unit beside a cut comes from the window in which it lies further from the edge
            |~~~|---------|~~~|

All times are counted in units of 40 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cslm.units import FRAMES_PER_SECOND

LONGEST = 30 * FRAMES_PER_SECOND
"""What CosyVoice's tokenizer has positions for."""
CONTEXT = 2 * FRAMES_PER_SECOND
"""Two windows overlap by twice this: 4 s, as in github.com/xingchensong/S3Tokenizer."""
SEARCH = 6 * FRAMES_PER_SECOND
"""How much earlier than it must be a cut may be, if that is quieter."""
PAUSE = 5
"""Units over which loudness is averaged: 0.2 s, so that a plosive's closure is no pause."""


@dataclass(frozen=True)
class Window:
    """Units `first` to `last` are heard, of which `begin` to `end` are kept."""

    first: int
    begin: int
    end: int
    last: int


def cut(loudness: npt.NDArray[np.floating]) -> list[Window]:
    """Windows of at most 30 s whose kept parts follow each other and cover all of `loudness` (units,).

    Each cut is in the middle of the quietest 0.2 s in the last 6 s where the window may be cut; of equal ones
    it is the last. What fits into one window is one.
    """
    total = len(loudness)
    around = np.convolve(loudness, np.full(PAUSE, 1 / PAUSE), "same") if total > LONGEST else loudness
    windows: list[Window] = []
    begin = 0
    while begin < total:
        first = max(0, begin - CONTEXT)
        end = total
        if total - first > LONGEST:
            latest = first + LONGEST - CONTEXT
            end = latest - int(around[latest - SEARCH : latest + 1][::-1].argmin())
        windows.append(Window(first, begin, end, min(total, end + CONTEXT)))
        begin = end
    return windows


def stitch(windows: Sequence[Window], heard: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """Units of each window (last - first,) -> those of the whole (total,)."""
    kept = [units[w.begin - w.first : w.end - w.first] for w, units in zip(windows, heard, strict=True)]
    return np.concatenate([np.zeros(0, np.int64), *kept])
