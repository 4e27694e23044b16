"""New utterances out of the words of recorded ones (aligned data augmentation, arXiv 2104.01393).

A model that hears few recordings learns them by heart: it takes a few units for the whole sentence. Words that
change places between sentences of one voice, text and units together, leave it no choice but to listen; and an
excerpt of a few words shows which units make which letters. Utterances of unknown speakers stay as they are.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from typing import TypeVar

from cslm.aligned import AlignedUtterance, Word
from cslm.noise import OPENING, openings
from cslm.shards import UNKNOWN_SPEAKER

BANK = 200_000
"""Words kept at most, and as many in openings: a random choice from all, so that memory stays flat as the
corpus grows."""
OPENINGS = 100
"""Openings kept of each voice."""
LONGEST_EXCERPT = 6

Place = tuple[tuple[str, float], str, bool, str]
Voice = tuple[tuple[str, float], str]
Kept = TypeVar("Kept")


class WordBank:
    """Words of many utterances, and where in a sentence of which voice they fit."""

    def __init__(self, utterances: Iterable[AlignedUtterance], seed: int, size: int = BANK) -> None:
        self._rng = random.Random(seed)
        kept: list[tuple[Place, Word]] = []
        begun: list[tuple[Voice, tuple[Word, ...]]] = []
        known = (utterance for utterance in utterances if utterance.speaker != UNKNOWN_SPEAKER)
        number = 0
        for index, utterance in enumerate(known):
            [opening] = openings([utterance.words])
            voice = utterance.voice, utterance.language
            self._keep(begun, (voice, opening), index, size // OPENING)
            for place, word in _spoken(utterance):
                self._keep(kept, (place, word), number, size)
                number += 1
        self._recordings: dict[Place, dict[str, list[Word]]] = defaultdict(lambda: defaultdict(list))
        for place, word in kept:
            self._recordings[place][word.text].append(word)
        self._words = {place: list(words) for place, words in self._recordings.items()}
        self._openings: dict[Voice, list[tuple[Word, ...]]] = defaultdict(list)
        for voice, opening in begun:
            if len(self._openings[voice]) < OPENINGS:
                self._openings[voice].append(opening)

    def _keep(self, kept: list[Kept], each: Kept, number: int, size: int) -> None:
        """Keep what is the `number`th to come (from 0), if it is one of `size` that are drawn from all."""
        if number < size:
            kept.append(each)
        elif (slot := self._rng.randrange(number + 1)) < size:
            kept[slot] = each

    def splice(self, utterance: AlignedUtterance, share: float) -> list[Word]:
        """The words of `utterance`, `share` of them replaced by any other word of its voice that fits there.

        A word fits if it begins with a capital or not, and ends in a space or punctuation, as the old one does.
        Rare words are as probable as frequent ones.
        """
        return [self._draw(utterance, word, same=False, share=share) for word in utterance.words]

    def respeak(self, utterance: AlignedUtterance, share: float) -> list[Word]:
        """The words of `utterance`, `share` of them from any recording of the same word by its voice."""
        return [self._draw(utterance, word, same=True, share=share) for word in utterance.words]

    def opening(self, utterance: AlignedUtterance) -> tuple[Word, ...]:
        """How another sentence of the same voice begins."""
        return self._rng.choice(self._openings.get((utterance.voice, utterance.language)) or [()])

    def _draw(self, utterance: AlignedUtterance, word: Word, same: bool, share: float) -> Word:
        place = _place(utterance, word)
        if self._rng.random() >= share or place not in self._words:
            return word
        text = word.text if same else self._rng.choice(self._words[place])
        return self._rng.choice(self._recordings[place].get(text) or [word])

    def excerpt(self, words: SequenceOf[Word]) -> list[Word]:
        """One to `LONGEST_EXCERPT` words in a row, short excerpts more often; all words if those are silent."""
        length = min(len(words), int(LONGEST_EXCERPT ** self._rng.random() + 0.5))
        first = self._rng.randrange(len(words) - length + 1)
        heard = list(words[first : first + length])
        return heard if any(word.units for word in heard) else list(words)


def _spoken(utterance: AlignedUtterance) -> Iterable[tuple[Place, Word]]:
    return ((_place(utterance, word), word) for word in utterance.words if word.units)


def _place(utterance: AlignedUtterance, word: Word) -> Place:
    ending = re.search(r"\W*$", word.text)
    return utterance.voice, utterance.language, word.text[:1].isupper(), ending.group() if ending else ""
