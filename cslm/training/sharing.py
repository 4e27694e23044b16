"""How the rows of a step are shared: among ranks, and on each of them among micro batches.

    step        | row 0 | row 1 | row 2 | row 3 | row 4 | row 5 | row 6 | row 7 |
    rank        | 0             | 1             | 0             | 1             |
    micro batch | first                         | second                        |

Gradients of the micro batches are summed, so a step learns the same however it is shared.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shares:
    """A step of `ranks` x `micro_batches` x `rows` rows."""

    ranks: int
    micro_batches: int
    """Of one rank, one after the other."""
    rows: int
    """Of one micro batch."""

    @property
    def step_rows(self) -> int:
        """Over all ranks."""
        return self.ranks * self.micro_batches * self.rows


def shares(
    batch_tokens: int, length: int, ranks: int, micro_batch_tokens: int | None, most: int | None = None
) -> Shares:
    """The fewest micro batches of at most `micro_batch_tokens` (none: one), for rows of `length` tokens.

    Args:
        most: rows that there are; a step takes no more.

    Raises:
        ValueError: the rows of a step cannot be shared evenly, or a row is more than a micro batch may have.
    """
    asked = max(1, batch_tokens // length)
    rows = asked if most is None else max(1, min(asked, most))
    if rows % ranks:
        fewer, more = rows // ranks * ranks, (rows // ranks + 1) * ranks
        there = [n for n in (fewer, more) if n and (most is None or n <= most)]
        could = " or ".join(f"{n * length} ({n} rows)" for n in there)
        other_tokens = f"batch_tokens {could}, or " if could else ""
        all_of_them = f", and there are {rows}" if rows < asked else ""
        raise ValueError(
            f"batch_tokens {batch_tokens} are {asked} rows of {length}{all_of_them}, which {ranks} ranks "
            f"cannot share: give {other_tokens}{most_ranks(rows, ranks)} ranks"
        )
    share = rows // ranks
    fitting = share if micro_batch_tokens is None else micro_batch_tokens // length
    if not fitting:
        raise ValueError(
            f"micro_batch_tokens {micro_batch_tokens} are less than one row: give {length} or more, or shorter "
            "rows (compose.length)"
        )
    micro = max(n for n in range(1, min(share, fitting) + 1) if share % n == 0)
    return Shares(ranks, share // micro, micro)


def most_ranks(rows: int, ranks: int) -> int:
    """The most of so many ranks that can share the rows of a step evenly."""
    return max(n for n in range(1, min(ranks, rows) + 1) if rows % n == 0)
