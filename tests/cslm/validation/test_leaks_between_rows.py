"""What training must not share with the held-out splits, and which of two colliding rows stays."""

from __future__ import annotations

import pandas as pd

from cslm.validation.leaks import (
    heldout_speech,
    heldout_texts,
    repeated_audio,
    repeated_ids,
    shared_speakers,
    shared_texts,
)


def frame(*rows: tuple[str, str, str, int, int]) -> pd.DataFrame:
    """Rows of (id, split, speaker, text key, audio hash)."""
    table = pd.DataFrame(rows, columns=["id", "split", "speaker", "text_key", "audio_hash"])
    return table.assign(source="mine")


def test_the_first_of_equal_ids_stays() -> None:
    assert dict(repeated_ids(frame(("a", "train", "s", 1, 1), ("a", "test", "s", 2, 2)))) == {
        1: "id 'a' is there twice; the first row is kept"
    }


def test_of_equal_audio_the_heldout_row_stays() -> None:
    rows = frame(("a", "train", "s", 1, 7), ("b", "test", "s", 2, 7), ("c", "train", "s", 3, 8))
    assert dict(repeated_audio(rows)) == {0: "the same audio as utterance 'b'"}


def test_training_loses_a_text_that_is_held_out() -> None:
    rows = frame(("a", "train", "s", 5, 1), ("b", "dev", "s", 5, 2), ("c", "test", "s", 6, 3))
    heldout = heldout_texts(rows, ["text_key"])
    leak = {0: "leak: its text is also in dev ('b'), which training must not see"}
    assert dict(shared_texts(rows, ["text_key"], heldout)) == leak
    dialogues = pd.DataFrame({"split": ["train", "train"], "question_key": [5, 9]})
    assert dict(shared_texts(dialogues, ["question_key"], heldout)) == leak, "in another table"


def test_training_loses_a_heldout_voice_and_a_test_speaker_if_that_is_asked() -> None:
    rows = frame(
        ("a", "train", "anna", 1, 1),
        ("b", "heldout_voice", "anna", 2, 2),
        ("c", "train", "ben", 3, 3),
        ("d", "test", "ben", 4, 4),
    )
    anna = {0: "leak: its speaker 'anna' is in heldout_voice"}
    assert dict(shared_speakers(rows, ["heldout_voice"])) == anna
    ben = {2: "leak: its speaker 'ben' is in test"}
    assert dict(shared_speakers(rows, ["heldout_voice", "dev", "test"])) == anna | ben


def test_unknown_speakers_and_namesakes_of_other_corpora_are_no_leak() -> None:
    rows = frame(("a", "train", "unknown", 1, 1), ("b", "heldout_voice", "unknown", 2, 2))
    assert not list(shared_speakers(rows, ["heldout_voice"]))
    rows = frame(("a", "train", "1", 1, 1), ("b", "heldout_voice", "1", 2, 2))
    assert not list(shared_speakers(rows.assign(source=["one", "other"]), ["heldout_voice"]))


def test_a_training_dialogue_must_not_use_heldout_speech() -> None:
    dialogues = pd.DataFrame({"split": ["train", "test", "train"], "question_speech": ["u1", "u1", ""]})
    assert dict(heldout_speech(dialogues, ["question_speech"], pd.Series({"u1": "test"}))) == {
        0: "leak: it is of train, but its question_speech 'u1' is of test"
    }
