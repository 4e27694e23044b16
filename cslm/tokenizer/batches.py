"""Batches of similar length, so that little of them is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def by_length(lengths: Sequence[float], limit: float) -> Iterator[list[int]]:
    """Indices of `lengths`, from short to long, in batches of at most `limit` with their padding.

    What is longer than `limit` is a batch alone.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and lengths[i] * (len(batch) + 1) > limit:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
