"""The held-out items: utterances, spoken dialogues, written questions, translations."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cslm.shards import read_rows
from cslm.tables import read_table

Item = TypeVar("Item")
Key = TypeVar("Key")


@dataclass(frozen=True)
class Utterance:
    """One spoken sentence; runs of its units are merged."""

    id: str
    language: str
    text: str
    units: tuple[int, ...]


@dataclass(frozen=True)
class Dialogue:
    """A question with its answer; `question_units` is empty if the question is only written.

    `answer_speech` is the id of a recording of the answer, empty if there is none: to be heard beside what the
    model says, which is measured against the text.
    """

    id: str
    question_language: str
    question: str
    question_speech: str
    question_units: tuple[int, ...]
    answer_language: str
    answer: str
    answer_speech: str = ""

    @property
    def pair(self) -> tuple[str, str]:
        """Language of the question, language of the answer."""
        return self.question_language, self.answer_language


def place_of(asked: str, wanted: str) -> tuple[str, str]:
    """Where the figures of a pair of languages stand: `conversation`, `en`, or `cross_lingual`, `en_zh`."""
    return ("conversation", asked) if asked == wanted else ("cross_lingual", f"{asked}_{wanted}")


@dataclass(frozen=True)
class Translation:
    """A sentence and its translation."""

    id: str
    source_language: str
    source: str
    target_language: str
    target: str


@dataclass(frozen=True)
class HeldOut:
    """All items of one split, in the order of their ids."""

    split: str
    utterances: list[Utterance]
    dialogues: list[Dialogue]
    translations: list[Translation]

    @property
    def spoken(self) -> list[Dialogue]:
        """Dialogues whose question is there as speech."""
        return [dialogue for dialogue in self.dialogues if dialogue.question_units]

    @property
    def written(self) -> list[Dialogue]:
        """Each question once as text, to be answered in its own language."""
        own = {(d.question, d.answer): d for d in self.dialogues if d.question_language == d.answer_language}
        return list(own.values())


def read_held_out(aligned: Path, accepted: Path, split: str, languages: Sequence[str]) -> HeldOut:
    """The items of a split in `work/aligned` and `work/accepted`, of these languages only.

    Raises:
        FileNotFoundError: one of the folders or tables is missing.
    """
    utterances = [
        Utterance(row["id"], row["language"], row["text"], tuple(row["units"]))
        for row in read_rows(aligned, ["id", "language", "text", "units"], [split])
        if row["language"] in languages and row["units"]
    ]
    units = {utterance.id: utterance.units for utterance in utterances}
    dialogues = [
        Dialogue(
            row["id"],
            row["question_language"],
            row["question"],
            row["question_speech"],
            units.get(row["question_speech"], ()),
            row["answer_language"],
            row["answer"],
            row["answer_speech"],
        )
        for row in read_table(accepted / "dialogues.parquet")
        if row["split"] == split and {row["question_language"], row["answer_language"]} <= set(languages)
    ]
    translations = [
        Translation(*(row[k] for k in ("id", "source_language", "source", "target_language", "target")))
        for row in read_table(accepted / "translations.parquet")
        if row["split"] == split and {row["source_language"], row["target_language"]} <= set(languages)
    ]
    return HeldOut(
        split,
        sorted(utterances, key=lambda item: item.id),
        sorted(dialogues, key=lambda item: item.id),
        sorted(translations, key=lambda item: item.id),
    )


def spread(items: Sequence[Item], limit: int | None, seed: int) -> list[Item]:
    """At most `limit` items at equal distances, with a start drawn by `seed`: no part is left out."""
    if limit is None or len(items) <= limit:
        return list(items)
    start = random.Random(seed).random()
    return [items[int((i + start) * len(items) / limit)] for i in range(limit)]


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Items by key, keys in the order of their first item."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
