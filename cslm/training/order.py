"""The order in which a training takes its rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch.utils.data import BatchSampler, Sampler


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


class ReadAhead(BatchSampler):
    """The micro batches of all ranks, by turns; a rank begins to read its own before it comes to them.

    Args:
        order: of the rows.
        rows: of one micro batch.
        read_soon: is given those of this rank.
        rank: this one.
        ranks: how many there are.
        ahead: how many of them.
    """

    def __init__(
        self,
        order: RowOrder,
        rows: int,
        read_soon: Callable[[list[int]], None],
        rank: int,
        ranks: int,
        ahead: int,
    ) -> None:
        super().__init__(order, rows, drop_last=False)
        self._read_soon, self._rank, self._ranks, self._ahead = read_soon, rank, ranks, ahead

    def __iter__(self) -> Iterator[list[int]]:
        waiting: deque[list[int]] = deque()
        for number, batch in enumerate(super().__iter__()):
            if number % self._ranks == self._rank:
                self._read_soon(batch)
            waiting.append(batch)
            if len(waiting) > self._ahead * self._ranks:
                yield waiting.popleft()
        yield from waiting
