"""What training must not share with the held-out splits, and which of two colliding rows stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cslm.scratch import scratch_database
from cslm.validation.leaks import (
    HeldOutTexts,
    heldout_speech,
    repeated_audio,
    repeated_ids,
    shared_speakers,
    shared_texts,
)
from cslm.validation.statistics import Statistics


class Corpus:
    """Makes tables of statistics in a database."""

    def __init__(self, database: Any) -> None:
        self.database = database

    def table(
        self, name: str, columns: str, *rows: tuple[Any, ...], refused: tuple[int, ...] = ()
    ) -> Statistics:
        """Rows with these columns, some of them refused already."""
        made = Statistics(self.database, name)
        made.add(
            (dict(zip(columns.split(), row, strict=True)), "bad" if number in refused else "")
            for number, row in enumerate(rows)
        )
        return made

    def utterances(self, *rows: tuple[str, str, str, int, int], **options: Any) -> Statistics:
        """Rows of (id, split, speaker, text key, audio hash) of one source."""
        columns = "id split speaker text_key audio_hash source"
        return self.table("utterances", columns, *((*row, "mine") for row in rows), **options)


@pytest.fixture
def corpus(tmp_path: Path) -> Iterator[Corpus]:
    with scratch_database(tmp_path) as database:
        yield Corpus(database)
    assert not [*tmp_path.iterdir()]


def test_the_first_of_equal_ids_stays(corpus: Corpus) -> None:
    rows = corpus.utterances(("a", "train", "s", 1, 1), ("a", "test", "s", 2, 2), ("b", "train", "s", 3, 3))
    assert dict(repeated_ids(rows)) == {1: "id 'a' is there twice; the first row is kept"}


def test_a_refused_row_takes_no_other_row_along(corpus: Corpus) -> None:
    rows = corpus.utterances(("a", "train", "s", 1, 1), ("a", "test", "s", 2, 1), refused=(0,))
    assert not dict(repeated_ids(rows)) and not dict(repeated_audio(rows))


def test_of_equal_audio_the_heldout_row_stays(corpus: Corpus) -> None:
    rows = corpus.utterances(("a", "train", "s", 1, 7), ("b", "test", "s", 2, 7), ("c", "train", "s", 3, 8))
    assert dict(repeated_audio(rows)) == {0: "the same audio as utterance 'b'"}


def test_training_loses_a_text_that_is_held_out(corpus: Corpus) -> None:
    rows = corpus.utterances(("a", "train", "s", 5, 1), ("b", "dev", "s", 5, 2), ("c", "test", "s", 6, 3))
    heldout = HeldOutTexts(corpus.database)
    heldout.add(rows, ["text_key"])
    leak = {0: "leak: its text is also in dev ('b'), which training must not see"}
    assert dict(shared_texts(rows, ["text_key"])) == leak
    dialogues = corpus.table("dialogues", "split question_key", ("train", 5), ("train", 9))
    assert dict(shared_texts(dialogues, ["question_key"])) == leak, "in another table"


def test_training_loses_a_heldout_voice_and_a_test_speaker_if_that_is_asked(corpus: Corpus) -> None:
    rows = corpus.utterances(
        ("a", "train", "anna", 1, 1),
        ("b", "heldout_voice", "anna", 2, 2),
        ("c", "train", "ben", 3, 3),
        ("d", "test", "ben", 4, 4),
    )
    anna = {0: "leak: its speaker 'anna' is in heldout_voice"}
    assert dict(shared_speakers(rows, ["heldout_voice"])) == anna
    ben = {2: "leak: its speaker 'ben' is in test"}
    assert dict(shared_speakers(rows, ["heldout_voice", "dev", "test"])) == anna | ben


def test_unknown_speakers_are_no_leak(corpus: Corpus) -> None:
    rows = corpus.utterances(("a", "train", "unknown", 1, 1), ("b", "heldout_voice", "unknown", 2, 2))
    assert not list(shared_speakers(rows, ["heldout_voice"]))


def test_namesakes_of_other_corpora_are_no_leak(corpus: Corpus) -> None:
    columns = "id split speaker source"
    rows = corpus.table("utterances", columns, ("a", "train", "1", "one"), ("b", "heldout_voice", "1", "other"))
    assert not list(shared_speakers(rows, ["heldout_voice"]))


def test_a_training_dialogue_must_not_use_heldout_speech(corpus: Corpus) -> None:
    spoken = corpus.utterances(("u1", "test", "s", 1, 1), ("u2", "test", "s", 2, 2), refused=(1,))
    columns = "split question_speech"
    dialogues = corpus.table(
        "dialogues", columns, ("train", "u1"), ("test", "u1"), ("train", ""), ("train", "u2")
    )
    assert dict(heldout_speech(dialogues, ["question_speech"], spoken)) == {
        0: "leak: it is of train, but its question_speech 'u1' is of test"
    }
