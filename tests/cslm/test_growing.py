"""A cache that grows in place holds what that of transformers does."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache

from cslm.growing import ROOM, growing_cache

LENGTHS = st.lists(st.integers(1, 2 * ROOM), min_size=1, max_size=5)


@given(LENGTHS, st.integers(0, 2**16))
def test_whatever_is_written_and_left_out_it_is_that_of_transformers(lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = growing_cache(), DynamicCache()
    rows = 4
    for length in lengths:
        for layer in range(2):
            new = [torch.randn(rows, 2, length, 3, generator=generator) for _ in range(2)]
            found, expected = (cache.update(*new, layer) for cache in (ours, theirs))
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert ours.get_seq_length() == theirs.get_seq_length()
        kept = torch.randperm(rows, generator=generator)[: max(1, rows - 1)]
        rows = len(kept)
        for cache in (ours, theirs):
            cache.batch_select_indices(kept)


def test_a_token_moves_nothing_while_there_is_room() -> None:
    cache = growing_cache()
    first, _ = cache.update(torch.ones(3, 2, 5, 4), torch.ones(3, 2, 5, 4), 0)
    places = set()
    for token in range(ROOM):
        new = torch.full((3, 2, 1, 4), float(token))
        keys, _ = cache.update(new, new, 0)
        places.add(keys.data_ptr())
    assert places == {first.data_ptr()}
    moved, _ = cache.update(new, new, 0)
    assert moved.data_ptr() != first.data_ptr()
    assert moved.shape == (3, 2, 5 + ROOM + 1, 4)
