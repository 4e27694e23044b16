"""What an importer yields, and the names it must bring to the project's own: splits and languages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "development", "valid", "validation", "validated"), "dev"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
SURROGATE = re.compile("[\ud800-\udfff]")


class BadCorpus(ValueError):
    """The folder is not a corpus of the format that the settings name; the message says what is missing."""


@dataclass(frozen=True)
class Defaults:
    """What the settings say of every row of a corpus; `language` None: the corpus says it itself."""

    language: str | None = None
    split: str = "train"


@dataclass(frozen=True)
class Segment:
    """A part of a long recording: `duration_s` seconds of one channel, from `start_s`."""

    path: Path
    start_s: float
    duration_s: float
    channel: int


@dataclass(frozen=True)
class Found:
    """One utterance as it lies in the corpus. `file` is for messages: path in the corpus and line or row."""

    id: str
    file: str
    audio: Path | bytes | Segment
    text: str
    language: str
    speaker: str
    split: str
    duration_s: float | None = None
    """What the corpus claims, if it does; checked against the signal by validation."""
    source: str | None = None


@dataclass(frozen=True)
class Refused:
    """A row that cannot be used, and why, in words for the person who made the corpus."""

    id: str
    file: str
    reason: str
    table: str = "utterances"


def split_named(name: str) -> str:
    """The project's split for a corpus' own name of it (`train-clean-100` -> `train`, `validation` -> `dev`).

    A name that is none of these is returned as it is; taking the row in then refuses it.
    """
    folded = name.strip().casefold()
    return SPLIT_NAMES.get(re.split(r"[^a-z]", folded)[0], folded)


def language_code(tag: str) -> str:
    """`zh-CN` -> `zh`, `EN` -> `en`; the project knows languages by their first subtag."""
    return tag.strip().replace("_", "-").split("-")[0].casefold()


def broken(text: str) -> str:
    """Why a text cannot be kept: a byte that was not UTF-8, or half of a character; empty if it can.

    JSON writes a character beyond U+FFFF as two halves, of which one alone is no text (`"\\ud83d"`).
    """
    if "\ufffd" in text:
        return "not valid UTF-8"
    half = SURROGATE.search(text)
    return f"half a character ({shown(half[0])}), its other half is missing; write it whole" if half else ""


def shown(text: str) -> str:
    """A text for messages: halves of characters, which nothing can write, spelled out (`\\ud83d`)."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
