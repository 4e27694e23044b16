"""The sample corpus' script: parallel, speakable, and without leaks between its splits."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

from components.script.__main__ import CASTING, dialogues, translations
from cslm.script import Cell, Line, cast, read_cells

INTENTS = Path(__file__).parents[2] / "sample" / "intents"


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return read_cells(INTENTS, seed=1)


@pytest.fixture(scope="module")
def lines(cells: list[Cell]) -> list[Line]:
    return cast(cells, CASTING, seed=1)


def test_there_are_at_least_forty_intents_with_several_phrasings(cells: list[Cell]) -> None:
    phrasings: dict[str, set[str]] = defaultdict(set)
    for cell in cells:
        phrasings[cell.intent].add(cell.id.rsplit("-", 1)[1])
    assert len(phrasings) >= 40
    assert min(map(len, phrasings.values())) >= 5


def test_no_question_of_an_evaluation_split_is_in_training(cells: list[Cell]) -> None:
    splits: dict[tuple[str, str], set[str]] = defaultdict(set)
    for cell in cells:
        for language, text in cell.question.items():
            splits[language, text].add(cell.split)
    assert all(len(found) == 1 for found in splits.values())


def test_spoken_text_of_a_split_is_in_no_other_but_for_the_held_out_voice(lines: list[Line]) -> None:
    splits: dict[str, set[str]] = defaultdict(set)
    for line in lines:
        splits[line.text].add(line.split)
    assert {frozenset(found) for found in splits.values()} <= {
        frozenset({"train"}),
        frozenset({"dev"}),
        frozenset({"test"}),
        frozenset({"test", "heldout_voice"}),
    }


def test_a_language_that_is_added_leaves_the_splits_of_the_others(cells: list[Cell]) -> None:
    known = {cell.id: cell for cell in cells}
    more = read_cells(INTENTS, seed=1, translated=INTENTS.parent / "es")
    assert {cell.id: cell.split for cell in more} == {cell.id: cell.split for cell in cells}
    translated = [cell for cell in more if "es" in cell.question]
    assert len({cell.intent for cell in translated}) == 17
    for cell in translated:
        assert {**cell.question, "es": ""} == {**known[cell.id].question, "es": ""}
        assert "{" not in cell.question["es"] + cell.answer["es"]


def test_a_translation_that_is_too_short_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "es"
    folder.mkdir()
    text = (INTENTS.parent / "es" / "month_after.yaml").read_text("utf-8")
    (folder / "month_after.yaml").write_text(text[: text.rindex("    - {")], "utf-8")
    with pytest.raises(ValueError, match=r"month_after.yaml: values: 11 of them, where the intent has 12"):
        read_cells(INTENTS, seed=1, translated=folder)


@pytest.mark.parametrize(
    ("intent", "said"),
    [
        ("unseen: {}\n", "missing 'questions'"),
        ("questions: {en: [a, b]}\nvalues: [[{}, {}], [{}, {}]]\n", "more than 4 combinations of values"),
        ("questions: {en: [a, b]}\nvalues: [[{}]]\n", r"more than 3 cells \(values times phrasings\)"),
    ],
)
def test_an_intent_that_lacks_something_is_named(tmp_path: Path, intent: str, said: str) -> None:
    (tmp_path / "short.yaml").write_text(intent, "utf-8")
    with pytest.raises(ValueError, match=rf"short\.yaml: {said}"):
        read_cells(tmp_path, seed=1)


def test_the_held_out_voices_speak_in_no_other_split(lines: list[Line]) -> None:
    heldout = {line.voice for line in lines if line.split == "heldout_voice"}
    assert len(heldout) == 2
    assert not heldout & {line.voice for line in lines if line.split != "heldout_voice"}


def test_at_least_six_voices_of_both_genders_speak_each_language(lines: list[Line]) -> None:
    for language in ("en", "zh"):
        voices = {line.voice for line in lines if line.language == language and line.split == "train"}
        assert len(voices) >= 6
        assert {voice[1] for voice in voices} == {"f", "m"}


def test_every_test_has_phrasings_and_combinations_that_training_lacks(cells: list[Cell]) -> None:
    trained = {cell.fact for cell in cells if cell.split == "train"}
    test = [cell for cell in cells if cell.split == "test"]
    assert any(cell.id.endswith("-u") for cell in test)
    assert any(cell.fact not in trained for cell in test)
    assert not any(cell.id.endswith("-u") for cell in cells if cell.split == "train")


def test_lines_are_speakable_and_unique(lines: list[Line]) -> None:
    allowed = {"en": r"[A-Za-z ,.?']+", "zh": r"[\u4e00-\u9fff，。？]+"}
    assert [line.text for line in lines if not re.fullmatch(allowed[line.language], line.text)] == []
    assert len({line.id for line in lines}) == len(lines)


def test_dialogues_and_translations_refer_to_lines(cells: list[Cell], lines: list[Line]) -> None:
    spoken = {line.id: line for line in lines}
    for row in dialogues(cells, lines):
        assert spoken[row["question_speech"]].text == row["question"]
        assert spoken[row["answer_speech"]].text == row["answer"]
        assert spoken[row["question_speech"]].split == row["split"]
    rows = list(translations(cells))
    assert len({row["id"] for row in rows}) == len(rows)
    training = {row["source"] for row in rows if row["split"] == "train"}
    assert not training & {row["source"] for row in rows if row["split"] != "train"}


def test_the_same_seed_gives_the_same_script(cells: list[Cell], lines: list[Line]) -> None:
    assert read_cells(INTENTS, seed=1) == cells
    assert cast(cells, CASTING, seed=1) == lines
    assert cast(cells, CASTING, seed=2) != lines
