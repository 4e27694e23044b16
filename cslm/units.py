"""Runs of equal units, merged for the language model and expanded for the decoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FRAMES_PER_SECOND = 25


def merge_runs(frames: npt.ArrayLike) -> tuple[list[int], list[int]]:
    """Frame units (T,) -> (units, durations): no two neighbors equal; durations count frames.

    `expand_runs(*merge_runs(frames))` gives the frames back exactly.
    """
    frames = np.asarray(frames)
    if not frames.size:
        return [], []
    starts = np.flatnonzero(np.concatenate([[True], frames[1:] != frames[:-1]]))
    durations = np.diff(np.append(starts, len(frames)))
    return frames[starts].tolist(), durations.tolist()


def expand_runs(units: Sequence[int], durations: Sequence[int]) -> npt.NDArray[np.int64]:
    """(units, durations) -> frame units (sum of durations,).

    Raises:
        ValueError: the two differ in length, or a duration is not positive.
    """
    if len(units) != len(durations) or any(duration < 1 for duration in durations):
        raise ValueError(f"{len(units)} units with {len(durations)} durations, each at least 1, are needed")
    return np.repeat(np.asarray(units, np.int64), np.asarray(durations, np.int64))
