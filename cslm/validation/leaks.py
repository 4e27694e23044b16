"""Checks between rows: ids and audio that repeat, and what training shares with the held-out splits.

All work on frames of statistics, one row each. Where two rows collide, one stays: the first of two equal
ids; the held-out one if training and a held-out split share audio or text - a test must not shrink.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from cslm.shards import UNKNOWN_SPEAKER

Reason = tuple[int, str]


def _items(column: pd.Series) -> Iterator[tuple[int, Any]]:
    """(row number, value) of a column of a frame whose index is the row number."""
    return zip(column.index.tolist(), column.tolist(), strict=True)


def repeated_ids(frame: pd.DataFrame) -> Iterator[Reason]:
    """Rows whose id an earlier row has, over all corpora."""
    for index, name in _items(frame["id"][frame["id"].duplicated()]):
        yield index, f"id '{name}' is there twice; the first row is kept"


def repeated_audio(frame: pd.DataFrame) -> Iterator[Reason]:
    """Rows whose audio another row has; of a held-out and a training row the held-out one stays."""
    ordered = frame.assign(training=frame["split"] == "train").sort_values("training", kind="stable")
    copies = ordered["audio_hash"].duplicated()
    first = ordered[ordered["audio_hash"].isin(ordered["audio_hash"][copies]) & ~copies]
    originals = dict(zip(first["audio_hash"], first["id"], strict=True))
    for index, audio_hash in _items(ordered["audio_hash"][copies]):
        yield index, f"the same audio as utterance '{originals[audio_hash]}'"


def heldout_texts(frame: pd.DataFrame, keys: Sequence[str]) -> dict[Any, tuple[str, str]]:
    """Split and id of the held-out row that has a text, by the text's key (columns `keys`)."""
    held = frame[frame["split"] != "train"]
    rows = list(zip(held["split"], held["id"], strict=True))
    return {value: row for key in keys for value, row in zip(held[key], rows, strict=True)}


def shared_texts(
    frame: pd.DataFrame, keys: Sequence[str], heldout: Mapping[Any, tuple[str, str]]
) -> Iterator[Reason]:
    """Training rows with a text (columns `keys`) that is among the `heldout` ones, of whichever table."""
    for key in keys:
        column = frame[key][frame["split"] == "train"]
        for index, value in _items(column[column.isin(heldout.keys())]):
            split, partner = heldout[value]
            yield index, f"leak: its text is also in {split} ('{partner}'), which training must not see"


def shared_speakers(frame: pd.DataFrame, heldout: Sequence[str]) -> Iterator[Reason]:
    """Training rows by a speaker of the splits `heldout`. Speakers are known by source and name."""
    voices = frame["source"] + "/" + frame["speaker"]
    known = frame[frame["split"].isin(heldout) & (frame["speaker"] != UNKNOWN_SPEAKER)]
    splits = dict(zip(voices[known.index], known["split"], strict=True))
    training = voices[(frame["split"] == "train") & voices.isin(splits.keys())]
    for index, voice in _items(training):
        yield index, f"leak: its speaker '{frame['speaker'][index]}' is in {splits[voice]}"


def heldout_speech(frame: pd.DataFrame, columns: Sequence[str], splits: pd.Series) -> Iterator[Reason]:
    """Training dialogues that use an utterance of a held-out split. `splits`: split by utterance id."""
    for column in columns:
        used = frame[column].map(splits)
        wrong = frame[(frame["split"] == "train") & used.notna() & (used != "train")]
        for index, utterance in _items(wrong[column]):
            split = splits[utterance]
            yield index, f"leak: it is of train, but its {column} '{utterance}' is of {split}"
