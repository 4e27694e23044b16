"""The training sequences of both phases, from aligned speech, dialogues and translations.

A weight is the number of passes over a task's items: 2 takes each twice, 0.5 a random half.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cslm.aligned import AlignedUtterance, AlignedUtterances, Word
from cslm.chunks import words as words_of
from cslm.noise import disturb
from cslm.sequences import Chain, Sequence, SequenceBuilder
from cslm.splicing import WordBank
from cslm.tables import read_table
from cslm.written import TRAIN, WrittenTasks, passes

REMEMBERED = 1000
"""Of stretches of speech and of questions that may replace another, and of earlier turns: the last ones."""
SPOKEN = frozenset({"dialogue", "cross_lingual"})
CONVERSATIONAL = SPOKEN | {"text"}
"""Tasks that may come behind earlier turns."""
WRITTEN_SHARE = 0.2
"""Of the earlier turns, so many are written ones; they are drawn from so many of the written questions."""


@dataclass(frozen=True)
class Variation:
    """How passes over the same speech differ; the names are those of params.yaml."""

    answer_noise: float
    misheard: float
    unit_dropout: float
    question_noise: float
    splice: float
    excerpt: float
    listening: bool
    earlier_turns: float


class Mixture:
    """Builds the sequences of the train split; `skipped` counts items that lack the speech they need."""

    def __init__(
        self,
        builder: SequenceBuilder,
        speech: AlignedUtterances,
        accepted: Path,
        variation: Variation,
        longest: int,
        seed: int,
    ) -> None:
        self._builder = builder
        self._speech = speech
        self._accepted = accepted
        self._variation = variation
        self._longest = longest
        self._bank = WordBank((each for versions in speech.of_split(TRAIN) for each in versions), seed)
        self._stretches: deque[list[int]] = deque(maxlen=REMEMBERED)
        self._asked: dict[str, deque[list[int]]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self._written = WrittenTasks(builder, accepted, variation.question_noise, seed)
        self._rng = random.Random(seed)
        self.skipped: Counter[str] = Counter()

    def pretrain(self, weights: Mapping[str, float]) -> Iterator[Sequence]:
        """Phase 1: `asr`, `tts`, `mt`, `text` and `repeat`."""
        yield from self._replay(weights)

    def finetune(self, weights: Mapping[str, float]) -> Iterator[Sequence]:
        """Phase 2: `interleaved` and `cross_lingual` dialogue, `full_chain`, and phase 1 again."""
        sequences = itertools.chain(self._dialogues(weights), self._replay(weights))
        yield from self._talks(sequences) if self._variation.earlier_turns else sequences

    def _talks(self, sequences: Iterable[Sequence]) -> Iterator[Sequence]:
        """The same sequences; some questions come behind earlier turns, where both fit into `longest`."""
        written = deque(self._written.instructions(WRITTEN_SHARE), maxlen=REMEMBERED)
        spoken: deque[Sequence] = deque(maxlen=REMEMBERED)
        for sequence in sequences:
            if sequence.task in CONVERSATIONAL and self._rng.random() < self._variation.earlier_turns:
                known = written if not spoken or self._rng.random() < WRITTEN_SHARE else spoken
                joined = self._builder.joined(self._rng.choice(known), sequence) if known else sequence
                sequence = joined if len(joined.input_ids) <= self._longest else sequence
            if sequence.task in SPOKEN:
                spoken.append(sequence)
            yield sequence

    def _dialogues(self, weights: Mapping[str, float]) -> Iterator[Sequence]:
        """Spoken questions and answers."""
        for row in self._rows("dialogues"):
            if not row["question_speech"] or not row["answer_speech"]:
                if row["question_language"] != row["answer_language"]:
                    self.skipped["written_dialogue_across_languages"] += 1
                continue  # written: `text` below
            questions = self._speech.versions(row["question_speech"])
            answer = self._speech.get(row["answer_speech"])
            if answer is None or not (questions or self._may_mishear(row["question_language"])):
                self.skipped["dialogue_without_speech"] += 1
                continue
            kind = "interleaved" if row["question_language"] == row["answer_language"] else "cross_lingual"
            for _ in range(passes(weights[kind], self._rng)):
                yield self._dialogue(row, questions, answer, "interleaved").of(row["id"])
            for _ in range(passes(weights["full_chain"], self._rng)):
                yield self._dialogue(row, questions, answer, "full").of(row["id"])

    def _dialogue(
        self,
        row: Mapping[str, Any],
        questions: SequenceOf[AlignedUtterance],
        answer: AlignedUtterance,
        chain: Chain,
    ) -> Sequence:
        """A question of which no two passes sound alike, and its answer."""
        if self._may_mishear(row["question_language"]) and (
            not questions or self._rng.random() < self._variation.misheard
        ):
            sequence = self._misheard(row, answer, chain)
        else:
            sequence = self._understood(self._rng.choice(questions), answer, chain)
        return self._builder.misspoken(sequence, self._variation.answer_noise, self._stretches, self._rng)

    def _understood(self, question: AlignedUtterance, answer: AlignedUtterance, chain: Chain) -> Sequence:
        """What is heard is what is written and answered."""
        words = self._bank.respeak(question, self._variation.splice)
        opening = self._bank.opening(question)
        disturbed = disturb(words, opening, self._variation.question_noise, self._rng)
        words = disturbed if any(word.units for word in disturbed) else words
        text, units, spoken = self._heard(words)
        self._asked[question.language].append(units)
        languages = question.language, answer.language
        return self._builder.dialogue(units, text, answer.chunks, *languages, chain, spoken)

    def _misheard(self, row: Mapping[str, Any], answer: AlignedUtterance, chain: Chain) -> Sequence:
        """Another question is heard than the one that is written and answered."""
        said = disturb(words_of(row["question"]), (), self._variation.question_noise, self._rng)
        units = self._rng.choice(self._asked[row["question_language"]])
        text, languages = "".join(said).rstrip(), (row["question_language"], answer.language)
        return self._builder.misheard(self._builder.dialogue(units, text, answer.chunks, *languages, chain))

    def _may_mishear(self, language: str) -> bool:
        """Is there another question that could be heard?"""
        return bool(self._variation.misheard and self._asked[language])

    def _replay(self, weights: Mapping[str, float]) -> Iterator[Sequence]:
        """The tasks of phase 1."""
        yield from self._asr(weights["asr"])
        for sequence in itertools.chain(
            self._tts(weights["tts"]),
            self._written.translations(weights["mt"]),
            self._written.instructions(weights["text"]),
            self._written.repetitions(weights["repeat"]),
        ):
            yield self._builder.reading(sequence) if self._variation.listening else sequence

    def _tts(self, weight: float) -> Iterator[Sequence]:
        """Texts with their speech at its recorded speed, no two passes over one alike."""
        for versions in self._speech.of_split(TRAIN):
            utterance = next(each for each in versions if each.speed == 1)
            for _ in range(passes(weight, self._rng)):
                words = self._varied(utterance)
                text = "".join(word.text for word in words).rstrip()
                units = [unit for word in words for unit in word.units]
                yield self._builder.tts(text, units, utterance.language).of(utterance.id)

    def _asr(self, weight: float) -> Iterator[Sequence]:
        """Utterances with their text, no two passes over one alike."""
        for versions in self._speech.of_split(TRAIN):
            for _ in range(passes(weight, self._rng)):
                utterance = self._rng.choice(versions)
                words = self._varied(utterance)
                text, units, spoken = self._heard(words)
                yield self._builder.asr(units, text, utterance.language, spoken).of(utterance.id)

    def _varied(self, utterance: AlignedUtterance) -> list[Word]:
        """The words of `utterance`, some from other recordings, or only a few of them."""
        words = self._bank.splice(utterance, self._variation.splice)
        return self._bank.excerpt(words) if self._rng.random() < self._variation.excerpt else words

    def _rows(self, table: str) -> Iterable[dict[str, Any]]:
        return (row for row in read_table(self._accepted / f"{table}.parquet") if row["split"] == TRAIN)

    def _heard(self, words: SequenceOf[Word]) -> tuple[str, list[int], list[int | None]]:
        """Text of `words`, the user's units, and which character each speaks; some units are left out."""
        pairs: list[tuple[int, int | None]] = []
        text = ""
        for word in words:
            spoken = (at if at is None else len(text) + at for at in word.spoken)
            pairs += zip(word.units, spoken, strict=True)
            text += word.text
        kept = [pair for pair in pairs if self._rng.random() >= self._variation.unit_dropout] or pairs
        units, characters = [unit for unit, _ in kept], [character for _, character in kept]
        return text.rstrip(), units, characters if self._variation.listening else []
