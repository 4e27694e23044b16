"""Checks between rows: ids and audio that repeat, and what training shares with the held-out splits.

All ask the database of statistics, in which one row stands for each row. Where two rows collide, one stays: the
first of two equal ids; the held-out one if training and a held-out split share audio or text - a test must not
shrink. Texts that say little ("yeah", "嗯") are not looked for: one held-out utterance would take all like it
from training.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

from cslm.shards import UNKNOWN_SPEAKER
from cslm.validation.checks import NO_KEY
from cslm.validation.statistics import Reason, Statistics

COPIES = """number, id, original FROM (
    SELECT number, id, row_number() OVER same AS place, first_value(id) OVER same AS original
    FROM {{accepted}} WINDOW same AS (PARTITION BY {column} ORDER BY {order})
) WHERE place > 1"""


def repeated_ids(rows: Statistics) -> Iterator[Reason]:
    """Rows whose id an earlier row has, over all corpora."""
    for number, name, _ in rows.ask(COPIES.format(column="id", order="number")):
        yield number, f"id '{name}' is there twice; the first row is kept"


def repeated_audio(rows: Statistics) -> Iterator[Reason]:
    """Rows whose audio another row has; of a held-out and a training row the held-out one stays."""
    order = "split = 'train', number"
    for number, _, original in rows.ask(COPIES.format(column="audio_hash", order=order)):
        yield number, f"the same audio as utterance '{original}'"


class HeldOutTexts:
    """The texts of held-out rows of any table, by their keys: table `heldout_texts` of the database."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        database.execute("CREATE TABLE heldout_texts (key PRIMARY KEY, split, id) WITHOUT ROWID")

    def add(self, rows: Statistics, keys: Sequence[str]) -> None:
        """Those of a table's accepted rows, whose keys are in the columns `keys`."""
        for key in keys if rows else ():
            self._database.execute(
                f"INSERT OR REPLACE INTO heldout_texts SELECT {key}, split, id FROM {rows.name} "
                f"WHERE reason IS NULL AND split <> 'train' AND {key} <> {NO_KEY} ORDER BY number"
            )


def not_looked_for(rows: Statistics, keys: Sequence[str]) -> int:
    """How many held-out texts (columns `keys`) of a table say too little to be looked for in training."""
    held = "count(*) FROM {accepted} WHERE split <> 'train'"
    return sum(count for key in keys for (count,) in rows.ask(f"{held} AND {key} = {NO_KEY}"))


def shared_texts(rows: Statistics, keys: Sequence[str]) -> Iterator[Reason]:
    """Training rows with a text (columns `keys`) that is among the held-out ones, of whichever table."""
    for key in keys:
        for number, split, partner in rows.ask(
            "number, heldout_texts.split, heldout_texts.id FROM {accepted} AS mine JOIN heldout_texts "
            f"ON heldout_texts.key = mine.{key} WHERE mine.split = 'train'"
        ):
            yield number, f"leak: its text is also in {split} ('{partner}'), which training must not see"


def shared_speakers(rows: Statistics, heldout: Sequence[str]) -> Iterator[Reason]:
    """Training rows by a speaker of the splits `heldout`. Speakers are known by source and name."""
    splits = ", ".join("?" * len(heldout))
    for number, speaker, split in rows.ask(
        "number, mine.speaker, theirs.split FROM {accepted} AS mine JOIN "
        "(SELECT source, speaker, split, max(number) FROM {accepted} "
        f"WHERE split IN ({splits}) AND speaker <> ? GROUP BY source, speaker) AS theirs "
        "USING (source, speaker) WHERE mine.split = 'train'",
        *heldout,
        UNKNOWN_SPEAKER,
    ):
        yield number, f"leak: its speaker '{speaker}' is in {split}"


def heldout_speech(rows: Statistics, columns: Sequence[str], utterances: Statistics) -> Iterator[Reason]:
    """Training dialogues that use an accepted utterance of a held-out split."""
    for column in columns if utterances else ():
        for number, utterance, split in rows.ask(
            f"mine.number, mine.{column}, spoken.split FROM {{accepted}} AS mine "
            f"JOIN {utterances.name} AS spoken ON spoken.id = mine.{column} AND spoken.reason IS NULL "
            "WHERE mine.split = 'train' AND spoken.split <> 'train'"
        ):
            yield number, f"leak: it is of train, but its {column} '{utterance}' is of {split}"
