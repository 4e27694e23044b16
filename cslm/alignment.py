"""CTC forced alignment: which frames speak which label.

The best path is pi* = argmax prod_t P(pi_t | h_t) over all paths that collapse to the labels
(paper, section 3.3; Graves et al. 2006), found by Viterbi in O(T x L) time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BLANK = 0


class CannotAlign(ValueError):
    """The speech is too short for its labels."""


@dataclass(frozen=True)
class Span:
    """Frames [first, last) in which a label is spoken."""

    first: int
    last: int


def best_path(log_probs: npt.NDArray[np.floating], labels: Sequence[int]) -> npt.NDArray[np.int64]:
    """State of each frame on the most probable path.

    Args:
        log_probs: (T, V), log P(label | frame); column 0 is the blank.
        labels: L label ids, without blanks.

    Returns:
        (T,): state s in [0, 2L]; even states are blanks, state 2i + 1 is labels[i].

    Raises:
        CannotAlign: fewer frames than the labels (and the blanks between equal neighbors) need.
    """
    frames = len(log_probs)
    extended = np.full(2 * len(labels) + 1, BLANK)
    extended[1::2] = labels
    repeated = sum(a == b for a, b in itertools.pairwise(labels))
    if not frames or frames < len(labels) + repeated:
        raise CannotAlign(f"{frames} frames cannot hold {len(labels)} labels with {repeated} repeats")
    skip = np.zeros(len(extended), bool)  # a label may follow another label directly if they differ
    skip[3::2] = extended[3::2] != extended[1:-2:2]

    emissions = log_probs[:, extended].astype(np.float64)  # (T, S)
    score = np.full(len(extended), -np.inf)
    score[:2] = emissions[0, :2]
    back = np.zeros((frames, len(extended)), np.int8)
    for t in range(1, frames):
        step = np.concatenate([[-np.inf], score[:-1]])
        jump = np.where(skip, np.concatenate([[-np.inf, -np.inf], score[:-2]])[: len(score)], -np.inf)
        options = np.stack([score, step, jump])
        back[t] = options.argmax(0)
        score = options.max(0) + emissions[t]
    path = np.zeros(frames, np.int64)
    ends = [len(extended) - 1, max(len(extended) - 2, 0)]
    path[-1] = max(ends, key=lambda state: score[state])
    for t in range(frames - 1, 0, -1):
        path[t - 1] = path[t] - back[t, path[t]]
    return path


def align(log_probs: npt.NDArray[np.floating], labels: Sequence[int]) -> list[Span]:
    """Span of each label: from its first frame to the first frame of the next one.

    CTC fires late and briefly, so the blank frames behind a label count as its own; those before
    the first label belong to the first. The spans cover all frames without overlap.

    Raises:
        CannotAlign: see `best_path`.
    """
    if not len(labels):
        return []
    path = best_path(log_probs, labels)
    starts = [int(np.flatnonzero(path == 2 * i + 1)[0]) for i in range(len(labels))]
    starts[0] = 0
    return [Span(a, b) for a, b in zip(starts, [*starts[1:], len(log_probs)], strict=True)]
