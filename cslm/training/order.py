"""The order in which a training takes its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import Sampler


class RowOrder(Sampler[int]):
    """Rows step by step: which ones a step takes follows from the seed and the number of the step alone.

    So a training that goes on needs no walk through the steps before. Each epoch is a shuffle of its own, less
    the rows that are left over when its whole steps are full. A pass has as many rows as an epoch; if it does
    not begin with one, it goes on into the next.

    Args:
        rows: how many there are.
        step_rows: how many a step takes, on all ranks.
        seed: of the shuffles.
        steps_done: called when a pass begins: the steps that were made before it.
    """

    def __init__(self, rows: int, step_rows: int, seed: int, steps_done: Callable[[], int]) -> None:
        self._rows, self._seed, self._steps_done = rows, seed, steps_done
        self._step_rows = min(step_rows, rows)

    def __len__(self) -> int:
        return self._rows // self._step_rows * self._step_rows

    def __iter__(self) -> Iterator[int]:
        first = self._steps_done() * self._step_rows
        shuffled = None
        for place in range(first, first + len(self)):
            epoch, within = divmod(place, len(self))
            if shuffled is None or not within:
                shuffled = torch.randperm(
                    self._rows, generator=torch.Generator().manual_seed(self._seed + epoch)
                ).numpy()
            yield int(shuffled[within])
