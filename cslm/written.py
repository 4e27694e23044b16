"""Training sequences of written tasks: translation, instructions, and words to repeat."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any

from cslm.chunks import words
from cslm.noise import disturb, openings, salad
from cslm.sequences import ChatBuilder, Sequence
from cslm.shards import read_rows
from cslm.tables import read_table

TRAIN = "train"
KEPT = 20_000
"""Questions of each language whose words make noise; others are read and forgotten: memory stays flat."""


class WrittenTasks:
    """The written tasks of the train split of `accepted` (`dialogues.parquet`, `translations.parquet`).

    A weight is the number of passes over a task's items: 2 takes each twice, 0.5 a random half.

    Args:
        noise: share of the words of a question that change from pass to pass (cslm.noise).
    """

    def __init__(self, builder: ChatBuilder, accepted: Path, noise: float, seed: int) -> None:
        self._builder, self._accepted, self._noise = builder, accepted, noise
        self._rng = random.Random(seed)
        self._openings: dict[str, list[tuple[str, ...]]] = {}
        self._vocabulary: dict[str, list[str]] = {}

    def translations(self, weight: float) -> Iterator[Sequence]:
        """Text to text of another language."""
        for row in self._rows("translations"):
            for _ in range(passes(weight, self._rng)):
                yield self._builder.mt(row["source"], row["target"], row["target_language"]).of(row["id"])

    def instructions(self, weight: float) -> Iterator[Sequence]:
        """Dialogues within a language as written instructions, each once however often it was spoken."""
        self._read_words()
        for row in self._questions():
            said, language = words(row["question"]), row["question_language"]
            for _ in range(passes(weight, self._rng)):
                opening = self._rng.choice(self._openings[language])
                question = "".join(disturb(said, opening, self._noise, self._rng)).strip()
                yield self._builder.text(question, row["answer"], language).of(row["id"])

    def repetitions(self, weight: float) -> Iterator[Sequence]:
        """Words in random order, to be written again: as many as there are instructions.

        It teaches to copy, which answers ("nine plus three" -> "if you add nine and three") and reading of
        speech are made of. A language whose dialogues are single words has none.
        """
        self._read_words()
        for row in self._questions():
            language = row["question_language"]
            if not self._vocabulary[language]:
                continue  # all its dialogues are of single words: there is no order
            for _ in range(passes(weight, self._rng)):
                text = salad(self._vocabulary[language], self._rng)
                yield self._builder.repeat(text, language).of(row["id"])

    def _read_words(self) -> None:
        """Openings and vocabulary of each language, from the first questions."""
        if self._openings:
            return
        questions: dict[str, list[SequenceOf[str]]] = defaultdict(list)
        vocabulary: dict[str, set[str]] = defaultdict(set)
        for row in self._questions():
            language = row["question_language"]
            if len(questions[language]) == KEPT:
                continue
            questions[language].append(words(row["question"]))
            for text in (row["question"], row["answer"]):
                vocabulary[language].update(words(text)[:-1])  # a last word has no blank behind it
        self._openings = {language: openings(said) for language, said in questions.items()}
        self._vocabulary = {language: sorted(known) for language, known in vocabulary.items()}

    def _questions(self) -> Iterator[dict[str, Any]]:
        seen: set[int] = set()
        for row in self._rows("dialogues"):
            key = hash((row["question"], row["answer"]))
            if row["question_language"] == row["answer_language"] and key not in seen:
                seen.add(key)
                yield row

    def _rows(self, table: str) -> Iterable[dict[str, Any]]:
        return (row for row in read_table(self._accepted / f"{table}.parquet") if row["split"] == TRAIN)


def training_texts(accepted: Path) -> Iterator[str]:
    """All text of the train split of `accepted`, written and spoken."""
    columns = {"dialogues": ("question", "answer"), "translations": ("source", "target")}
    for table, names in columns.items():
        for row in read_table(accepted / f"{table}.parquet"):
            if row["split"] == TRAIN:
                yield from (row[name] for name in names)
    yield from (row["text"] for row in read_rows(accepted / "utterances", ["text"], [TRAIN]))


def passes(weight: float, rng: random.Random) -> int:
    """How often to take one item."""
    whole = int(weight)
    return whole + (rng.random() < weight - whole)
