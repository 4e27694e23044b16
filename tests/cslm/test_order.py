"""A training takes its rows in an order that it can enter anywhere."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from cslm.training.order import RowOrder


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_an_epoch_has_no_row_twice_and_as_many_whole_steps_as_it_can(rows: int, step: int, seed: int) -> None:
    order = RowOrder(rows, step, seed, lambda: 0)
    taken = list(order)
    assert len(taken) == len(order) == (rows - rows % step or rows)
    assert max(Counter(taken).values()) == 1
    assert set(taken) <= set(range(rows))


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 100), st.integers(0, 60))
def test_who_enters_at_any_step_takes_the_rows_that_were_to_come(
    rows: int, step: int, entered: int, seed: int
) -> None:
    done = 0
    order = RowOrder(rows, step, seed, lambda: done)
    undisturbed: list[int] = []
    while len(undisturbed) < entered * step + 2 * len(order):
        undisturbed += order
        done = len(undisturbed) // min(step, rows)
    done = entered
    first = entered * min(step, rows)
    assert list(order) == undisturbed[first : first + len(order)]


def test_epochs_and_seeds_have_shuffles_of_their_own() -> None:
    first, second = (tuple(RowOrder(100, 4, 1, lambda done=done: done)) for done in (0, 25))  # type: ignore[misc]
    assert len({first, second, tuple(RowOrder(100, 4, 7, lambda: 0))}) == 3


def test_the_billionth_step_costs_no_more_than_the_first() -> None:
    order = RowOrder(1000, 4, 1, lambda: 10**12)
    assert len(list(islice(order, 8))) == 8  # a walk to it would take days
