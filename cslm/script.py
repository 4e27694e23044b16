"""The script of a parallel spoken-dialogue corpus, expanded from intents with slots.

An *intent* is a YAML file: phrasings of a question, one answer, and the values of its slots, all in
every language. Its *facts* are the product of its groups of values. A *cell* is one phrasing of one
fact: the unit that is given to a split, in all languages at once, so that no text crosses splits.

    test            one phrasing per intent that training never uses, two more cells with a known
                    phrasing, and for intents with two slots whole pairs of values that training never has
    heldout_voice   the first test cell of each intent again, in a voice that nothing else uses
    dev             one cell per intent
    train           the other cells
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TEST_CELLS = 2
TEST_PAIRS = 3
DEV_PAIRS = 1
FIRST_QUESTIONS = 3
MANY_FACTS = 20


@dataclass(frozen=True)
class Cell:
    """One question in every language, with its answer: texts are `{language: text}`."""

    id: str
    intent: str
    fact: str
    split: str
    question: Mapping[str, str]
    answer: Mapping[str, str]


@dataclass(frozen=True)
class Line:
    """One sentence to speak."""

    id: str
    language: str
    text: str
    split: str
    voice: str
    speed: float
    fact: str
    role: str


@dataclass(frozen=True)
class Casting:
    """Who speaks: `{language: voices}` for all splits, and the one voice kept for `heldout_voice`."""

    voices: Mapping[str, Sequence[str]]
    heldout: Mapping[str, str]
    speed: tuple[float, float]


def read_cells(folder: Path, seed: int, translated: Path | None = None) -> list[Cell]:
    """Expand every `*.yaml` of `folder` into cells, with splits drawn by `seed`.

    `translated` is a folder, named as its language (sample/es), with some of these intents in that language.
    Their splits stay what they are without it.

    Raises:
        ValueError: a file lacks a key, a template names a slot that a value does not give, or a translation is
            not as long as its intent.
    """
    cells = [
        cell for path in sorted(folder.glob("*.yaml")) for cell in _cells_of_intent(path, seed, translated)
    ]
    if not cells:
        raise ValueError(f"{folder}: no intents (*.yaml) there")
    return cells


def _cells_of_intent(path: Path, seed: int, translated: Path | None) -> Iterator[Cell]:
    intent = yaml.safe_load(path.read_text("utf-8"))
    if translated is not None and (translated / path.name).exists():
        _translate(intent, translated / path.name)
    rng = random.Random(f"{seed}/{path.stem}")
    try:
        known = intent["questions"]
        languages = list(known)
        facts = [_merge(values) for values in itertools.product(*intent["values"])]
        splits = _draw_splits(len(facts), len(known[languages[0]]), len(intent["values"]) > 1, rng)
        for (fact, phrasing), split in sorted(splits.items()):
            templates = intent["unseen"] if phrasing < 0 else known
            yield Cell(
                id=f"{path.stem}-{fact:02d}-{'u' if phrasing < 0 else phrasing}",
                intent=path.stem,
                fact=f"{path.stem}-{fact:02d}",
                split=split,
                question={n: _fill(templates[n][max(phrasing, 0)], facts[fact][n]) for n in languages},
                answer={n: _fill(intent["answer"][n], facts[fact][n]) for n in languages},
            )
    except (KeyError, IndexError) as error:
        raise ValueError(f"{path}: missing {error}; see the other intents for the format") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _translate(intent: dict[str, Any], path: Path) -> None:
    """Add a language to an intent: the file has its phrasings and values in the same order."""
    added, language = yaml.safe_load(path.read_text("utf-8")), path.parent.name
    try:
        for key in ("questions", "unseen"):
            intent[key][language] = _as_long(added[key], next(iter(intent[key].values())), f"{path}: {key}")
        intent["answer"][language] = added["answer"]
        groups = _as_long(added["values"], intent["values"], f"{path}: values")
        for known, group in zip(intent["values"], groups, strict=True):
            for value, its_slots in zip(known, _as_long(group, known, f"{path}: values"), strict=True):
                value[language] = its_slots
    except KeyError as error:
        raise ValueError(f"{path}: missing {error}; see the other files of {path.parent}") from error


def _as_long(given: list[Any], wanted: Sequence[Any], where: str) -> list[Any]:
    if len(given) != len(wanted):
        raise ValueError(f"{where}: {len(given)} of them, where the intent has {len(wanted)}")
    return given


def _draw_splits(facts: int, phrasings: int, pairs: bool, rng: random.Random) -> dict[tuple[int, int], str]:
    """Split of each (fact, phrasing); phrasing -1 is the unseen one. A cell that is not here is not used."""
    kept = TEST_PAIRS + DEV_PAIRS if pairs else TEST_CELLS + 1
    if (facts if pairs else facts * phrasings) <= kept:
        what = "combinations of values" if pairs else "cells (values times phrasings)"
        raise ValueError(f"more than {kept} {what} are needed: so many are kept from training")
    order = rng.sample(range(facts), facts)
    splits: dict[tuple[int, int], str] = {}
    if pairs:  # whole combinations of slot values are kept from training
        for rank, fact in enumerate(order[: TEST_PAIRS + DEV_PAIRS]):
            splits[fact, rng.randrange(phrasings)] = "test" if rank < TEST_PAIRS else "dev"
        order = order[TEST_PAIRS + DEV_PAIRS :]
    splits[order[0], -1] = "test"
    free = [(fact, phrasing) for fact in order for phrasing in range(phrasings)]
    held = rng.sample(free, TEST_CELLS + 1) if not pairs else []
    for rank, cell in enumerate(held):
        splits[cell] = "test" if rank < TEST_CELLS else "dev"
    return splits | {cell: "train" for cell in free if cell not in splits}


def _merge(values: Sequence[Mapping[str, Mapping[str, str]]]) -> dict[str, dict[str, str]]:
    return {name: {k: v for value in values for k, v in value[name].items()} for name in values[0]}


def _fill(template: str, slots: Mapping[str, str]) -> str:
    text = template.format(**slots)
    return text[0].upper() + text[1:]


def cast(cells: Sequence[Cell], casting: Casting, seed: int) -> list[Line]:
    """One line per question and language, and one per answer of a fact, the most useful first.

    A corpus cut short at any line keeps its tests whole: evaluation questions come first, then the answers
    of their facts and `FIRST_QUESTIONS` training questions on each, then other facts in the same way (those
    of the largest intents before the rest), then all remaining questions.
    """
    rng = random.Random(seed)
    lines: list[Line] = []

    def speak(cell: Cell, language: str, split: str, role: str) -> None:
        text = cell.question[language] if role == "question" else cell.answer[language]
        name = f"{cell.id if role == 'question' else cell.fact}-{role[0]}-{language}"
        name += "-heldout" if split == "heldout_voice" else ""
        heldout = split == "heldout_voice"
        voice = casting.heldout[language] if heldout else rng.choice(list(casting.voices[language]))
        speed = round(rng.uniform(*casting.speed), 2)
        lines.append(Line(name, language, text, split, voice, speed, cell.fact, role))

    trained = {cell.fact for cell in cells if cell.split == "train"}
    order = sorted(cells, key=lambda cell: (["test", "dev", "train"].index(cell.split), cell.id))
    training = [cell for cell in order if cell.split == "train"]
    rng.shuffle(training)
    evaluation = [cell for cell in order if cell.split != "train"]
    for cell, language in itertools.product(evaluation, casting.voices):
        speak(cell, language, cell.split, "question")
    voiced: set[str] = set()
    for cell in evaluation:
        if cell.split == "test" and cell.intent not in voiced:
            voiced.add(cell.intent)
            for language in casting.heldout:
                speak(cell, language, "heldout_voice", "question")
    facts = list(dict.fromkeys(cell.fact for cell in [*evaluation, *_largest_first(training)]))
    evaluated = {cell.fact for cell in evaluation}
    cells_of: dict[str, list[Cell]] = {fact: [] for fact in facts}
    for cell in [*training, *evaluation]:
        cells_of[cell.fact].append(cell)

    def answer(fact: str) -> None:
        for language in casting.voices:
            cell = cells_of[fact][0]
            speak(cell, language, "train" if fact in trained else cell.split, "answer")

    def ask(cells: Sequence[Cell]) -> None:
        for cell, language in itertools.product(cells, casting.voices):
            if cell.split == "train":
                speak(cell, language, "train", "question")

    for fact in filter(evaluated.__contains__, facts):
        answer(fact)
    for fact in facts:
        if fact not in evaluated:
            answer(fact)
        ask(cells_of[fact][:FIRST_QUESTIONS])
    asked = {id(cell) for fact in facts for cell in cells_of[fact][:FIRST_QUESTIONS]}
    ask([cell for cell in training if id(cell) not in asked])
    return lines


def _largest_first(cells: Sequence[Cell]) -> list[Cell]:
    """Cells of intents with more than `MANY_FACTS` first: their tests combine what many facts teach."""
    facts: dict[str, set[str]] = {}
    for cell in cells:
        facts.setdefault(cell.intent, set()).add(cell.fact)
    return sorted(cells, key=lambda cell: len(facts[cell.intent]) <= MANY_FACTS)
