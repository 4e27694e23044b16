"""The rows of a step are all worked on, whoever shares them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cslm.training.sharing import Shares, shares


@given(st.integers(1, 64), st.integers(1, 24), st.integers(1, 4096), st.integers(1, 20_000))
def test_a_step_has_its_rows_in_micro_batches_that_fit(
    each: int, ranks: int, length: int, micro_batch_tokens: int
) -> None:
    batch_tokens = each * ranks * length
    if micro_batch_tokens < length:
        with pytest.raises(ValueError, match=f"less than one row: give {length}"):
            shares(batch_tokens, length, ranks, micro_batch_tokens)
        return
    shared = shares(batch_tokens, length, ranks, micro_batch_tokens)
    assert shared.step_rows == each * ranks
    assert shared.rows * length <= micro_batch_tokens


@pytest.mark.parametrize(
    ("rows", "length", "ranks", "micro_batch_tokens", "expected"),
    [
        (288, 1024, 24, 2048, Shares(24, 6, 2)),  # the paper's phase 1: micro batches of 2, 6 of them
        (288, 1024, 24, 5 * 1024, Shares(24, 3, 4)),  # 12 rows each: 5 would not come out even
        (288, 1024, 24, None, Shares(24, 1, 12)),
        (32, 4096, 1, 4096, Shares(1, 32, 1)),
    ],
)
def test_the_fewest_micro_batches_are_taken(
    rows: int, length: int, ranks: int, micro_batch_tokens: int | None, expected: Shares
) -> None:
    assert shares(rows * length, length, ranks, micro_batch_tokens) == expected
