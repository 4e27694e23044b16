"""The units of an answer as a strip of colours, which is what the language model wrote."""

from __future__ import annotations

from collections.abc import Sequence

GOLDEN_ANGLE = 137.508
"""Degrees: hues of neighbours in number lie far apart, so one sound is told from the next."""


def strip(pieces: Sequence[Sequence[int]], units: int) -> str:
    """HTML: a bar for each unit of an answer, a gap between its pieces; empty as long as nothing is said.

    A unit, of which there are `units`, always has the same colour; pointing at its bar shows its number.
    """
    count = sum(map(len, pieces))
    if not count:
        return ""
    groups = "".join(f"<span>{''.join(map(_bar, piece))}</span>" for piece in pieces if piece)
    kinds = len({unit for piece in pieces for unit in piece})
    return f'<p>{count} units, {kinds} of the {units} there are</p><div class="strip">{groups}</div>'


def _bar(unit: int) -> str:
    return f'<i title="unit {unit}" style="background:hsl({unit * GOLDEN_ANGLE % 360:.0f} 55% 60%)"></i>'
