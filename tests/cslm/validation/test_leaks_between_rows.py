"""What training must not share with the held-out splits, and which of two colliding rows stays."""

from __future__ import annotations

import pandas as pd

from cslm.validation.leaks import (
    heldout_speech,
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
    assert dict(shared_texts(rows, "text_key")) == {
        0: "leak: its text is also in dev ('b'), which training must not see"
    }


def test_training_loses_a_heldout_voice_but_not_a_test_speaker() -> None:
    rows = frame(
        ("a", "train", "anna", 1, 1),
        ("b", "heldout_voice", "anna", 2, 2),
        ("c", "train", "ben", 3, 3),
        ("d", "test", "ben", 4, 4),
    )
    assert dict(shared_speakers(rows)) == {0: "leak: its speaker 'anna' is in heldout_voice"}


def test_unknown_speakers_and_namesakes_of_other_corpora_are_no_leak() -> None:
    rows = frame(("a", "train", "unknown", 1, 1), ("b", "heldout_voice", "unknown", 2, 2))
    assert not list(shared_speakers(rows))
    rows = frame(("a", "train", "1", 1, 1), ("b", "heldout_voice", "1", 2, 2))
    assert not list(shared_speakers(rows.assign(source=["one", "other"])))


def test_a_training_dialogue_must_not_use_heldout_speech() -> None:
    dialogues = pd.DataFrame({"split": ["train", "test", "train"], "question_speech": ["u1", "u1", ""]})
    assert dict(heldout_speech(dialogues, ["question_speech"], pd.Series({"u1": "test"}))) == {
        0: "leak: it is of train, but its question_speech 'u1' is of test"
    }
