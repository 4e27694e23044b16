"""Questions that differ from pass to pass: words are left out, and foreign openings put before them.

    What food does a rabbit like?   ->   Please tell me what food does rabbit like?

A corpus of templates has few questions, and a model learns them by heart, whole sentence to whole answer: told
of a panda in words that it knows from penguins, it answers with fish. Here no two passes show the same
sentence, the way to ask tells nothing of what is asked, and what stays is the word that matters (word dropout:
Iyyer et al. 2015, section 3.2).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TypeVar

Word = TypeVar("Word")
OPENING = 4
"""Words of a foreign opening, at most."""
LONGEST_SALAD = 8
"""Words to be repeated, at most."""


def disturb(words: Sequence[Word], opening: Sequence[Word], share: float, rng: random.Random) -> list[Word]:
    """`words` without `share` of them; twice as often, the first few of the words `opening` before them.

    At least one of `words` stays.
    """
    kept = [word for word in words if rng.random() >= share] or [rng.choice(words)]
    if opening and rng.random() < 2 * share:
        kept = [*opening[: rng.randint(1, OPENING)], *kept]
    return kept


def salad(vocabulary: Sequence[str], rng: random.Random) -> str:
    """A few words in any order, of one or more, to be repeated: nobody can know them by heart."""
    return "".join(rng.choices(vocabulary, k=rng.randint(2, LONGEST_SALAD))).strip()


def openings(sentences: Iterable[Sequence[Word]]) -> list[tuple[Word, ...]]:
    """The first words of each sentence; never its last, behind which nothing can be put."""
    return [tuple(sentence[:-1][:OPENING]) for sentence in sentences]
