"""Chunks of text of about seven words, cut at punctuation, and the units that speak each.

Concatenated chunks give back the text and the units exactly, whatever the input.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import jieba
import numpy as np

from cslm.alignment import Span
from cslm.pronunciation import Label, is_han

jieba.setLogLevel("WARNING")

PUNCTUATION = frozenset(",.?!;:，。？！；：、…")


@dataclass(frozen=True)
class Chunk:
    """A piece of an utterance: its text, and units[first:last]."""

    text: str
    first: int
    last: int


def words(text: str) -> list[str]:
    """Words with the spaces and punctuation that follow them; joined, they are `text`."""
    pieces: list[str] = []
    for part in re.findall(r"\S+\s*|^\s+", text):
        pieces.extend(jieba.cut(part) if any(map(is_han, part)) else [part])
    merged: list[str] = []
    for piece in pieces:
        if merged and not any(character.isalnum() for character in piece):
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def spoken_words(text: str, labels: Sequence[Label]) -> list[str]:
    """The words of `text`, each with at least one of its `labels` if there are any.

    A word without one (the `20` of "is 20 degrees": nothing tells where its sound lies) belongs to the word
    before it, or to the one behind it at the beginning.
    """
    heard = {label.character for label in labels}
    joined: list[str] = []
    end, silent = 0, True
    for word in words(text):
        characters = range(end, end := end + len(word))
        if joined and (silent or heard.isdisjoint(characters)):
            joined[-1] += word
        else:
            joined.append(word)
        silent &= heard.isdisjoint(characters)
    return joined


def cut_text(text: str, words_per_chunk: int) -> list[str]:
    """Cut `text` into chunks of about `words_per_chunk` words; joined, they are `text`.

    A clause of up to one and a half times that length stays whole; a longer one is divided into parts of equal
    length; short clauses are joined while the sum stays within it.
    """
    limit = words_per_chunk + words_per_chunk // 2
    clauses: list[list[str]] = [[]]
    for word in words(text):
        clauses[-1].append(word)
        if word.rstrip()[-1:] in PUNCTUATION:
            clauses.append([])
    parts: list[list[str]] = []
    for clause in filter(None, clauses):
        if len(clause) <= limit:
            parts.append(clause)
        else:
            count = -(-len(clause) // words_per_chunk)
            parts.extend(list(part) for part in np.array_split(np.array(clause, object), count))
    chunks: list[list[str]] = []
    for part in parts:
        if chunks and len(chunks[-1]) + len(part) <= words_per_chunk:
            chunks[-1].extend(part)
        else:
            chunks.append(list(part))
    return ["".join(chunk) for chunk in chunks]


def spoken_characters(labels: Sequence[Label], spans: Sequence[Span], durations: Sequence[int]) -> list[int]:
    """Which character of the text each unit speaks: that of the label whose span holds the unit's first frame.

    Args:
        labels: labels of the text, at least one; `spans` has the frames of each and covers all of them.
        durations: frames of each unit.
    """
    starts = np.cumsum(durations) - durations
    found = np.searchsorted([span.first for span in spans], starts, side="right") - 1
    return [labels[index].character for index in found]


def cut_units(
    texts: Sequence[str], labels: Sequence[Label], spans: Sequence[Span], durations: Sequence[int]
) -> list[Chunk]:
    """Give each chunk of text the units that speak it.

    A cut falls where the first label of a chunk begins, moved to the nearest border between two runs, so
    that no unit is divided. A chunk without labels (punctuation alone) gets no units.

    Args:
        texts: chunks of one text, in order.
        labels: labels of the joined text, with the frames of each in `spans`.
        durations: frames of each unit.
    """
    borders = np.concatenate([[0], np.cumsum(durations)])
    chunks: list[Chunk] = []
    end = first = 0
    for index, text in enumerate(texts):
        end += len(text)
        following = [span for label, span in zip(labels, spans, strict=True) if label.character >= end]
        if index == len(texts) - 1 or not following:
            last = len(durations)
        else:
            last = max(first, int(np.abs(borders - following[0].first).argmin()))
        chunks.append(Chunk(text, first, last))
        first = last
    return chunks
