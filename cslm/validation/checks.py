"""The checks of single rows. One list serves twice: for the reason of a row, and for a suite over all rows.

A check looks at one statistic of a row (`statistics_of_*`) and allows a range, a set, or anything but null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cslm.audio import SAMPLE_RATE
from cslm.tables import SPLITS
from cslm.validation.signal import Signal
from cslm.validation.text import characters, control_characters, says_little, script_share, text_key

DURATION_TOLERANCE_S = 0.1
NO_KEY = 0
"""In place of the key of a text that says too little to be looked for among held-out ones."""
SCRIPT_SHARE = 0.3
"""Foreign words are common in any language; below a third, the text is of another one."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Limits:
    """What is allowed (params.yaml: validate, languages)."""

    languages: Sequence[str]
    min_duration_s: float
    max_duration_s: float
    max_clipped: float
    min_level_db: float
    characters_per_second: Mapping[str, tuple[float, float]]
    speakers_apart: Sequence[str]
    """Splits whose speakers training must not have."""


@dataclass(frozen=True)
class Check:
    """One statistic's allowed values. `reason` is a format string over the row, `low` and `high`."""

    column: str
    reason: str
    low: float | None = None
    high: float | None = None
    allowed: tuple[Any, ...] | None = None
    language: str | None = None
    """Only rows of this language are checked."""

    @property
    def present(self) -> bool:
        """Whether this check asks for no more than a value."""
        return self.low is None and self.high is None and self.allowed is None

    def refusal(self, row: Row) -> str | None:
        """Why the row fails, in words; None if it passes. Only a presence check minds a missing value."""
        if self.language is not None and row["language"] != self.language:
            return None
        value = row[self.column]
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        if self.present:
            good = not missing
        elif missing:
            good = True
        elif self.allowed is not None:
            good = value in self.allowed
        else:
            good = (self.low is None or value >= self.low) and (self.high is None or value <= self.high)
        return None if good else self.reason.format(**row, low=self.low, high=self.high)


def refusals(checks: Sequence[Check], row: Row) -> str:
    """All reasons against a row, joined; empty if it passes every check."""
    return "; ".join(reason for check in checks if (reason := check.refusal(row)) is not None)


def statistics_of_utterance(row: Row, signal: Signal) -> dict[str, Any]:
    """Statistics of one row of a shard (all its fields but audio and text) and of its signal."""
    kept = {key: row[key] for key in ("id", "split", "language", "speaker", "source", "sample_rate")}
    claimed = row["duration_s"]
    return {
        **kept,
        "claimed_s": claimed,
        "duration_s": signal.duration_s,
        "duration_error_s": abs(signal.duration_s - claimed) if math.isfinite(claimed) else math.inf,
        "peak": signal.peak,
        "clipped": signal.clipped,
        "level_db": signal.level_db,
        "audio_hash": signal.audio_hash,
        "audio_error": signal.error,
        **_statistics_of_text(row["text"], row["language"], "text", spoken=True),
        "characters_per_second": characters(row["text"]) / signal.duration_s
        if signal.duration_s > 0
        else math.nan,
    }


def statistics_of_texts(row: Row, sides: Sequence[str]) -> dict[str, Any]:
    """Statistics of a dialogue (`question`, `answer`) or a translation (`source`, `target`)."""
    statistics = {key: value for key, value in row.items() if key not in sides}
    for side in sides:
        spoken = bool(row.get(f"{side}_speech"))
        statistics |= _statistics_of_text(row[side], row[f"{side}_language"], side, spoken)
    return statistics


def _statistics_of_text(text: str, language: str, name: str, spoken: bool) -> dict[str, Any]:
    return {
        f"{name}_characters": characters(text),
        f"{name}_script": script_share(text, language),
        f"{name}_control": control_characters(text, spoken),
        f"{name}_key": NO_KEY if says_little(text) else text_key(text, language),
    }


def utterance_checks(limits: Limits) -> list[Check]:
    """The checks of an utterance's signal and text."""
    return [
        Check("split", "split '{split}' is unknown", allowed=SPLITS),
        Check(
            "sample_rate",
            f"sample rate {{sample_rate}} Hz; {SAMPLE_RATE} is needed",
            allowed=(SAMPLE_RATE,),
        ),
        Check("duration_s", "{audio_error}"),
        Check(
            "duration_s",
            "{duration_s:.2f} s long; {low:g} to {high:g} s is allowed",
            limits.min_duration_s,
            limits.max_duration_s,
        ),
        Check(
            "duration_error_s",
            "the audio lasts {duration_s:.2f} s, but its row says {claimed_s:.2f} s: truncated?",
            high=DURATION_TOLERANCE_S,
        ),
        Check(
            "clipped",
            "{clipped:.1%} of the samples are clipped; at most {high:.1%} is allowed",
            high=limits.max_clipped,
        ),
        Check(
            "level_db", "silent: level {level_db:.0f} dB; at least {low:g} dB is needed", limits.min_level_db
        ),
        *text_checks("text", "language", limits),
        *(
            Check(
                "characters_per_second",
                "speech rate {characters_per_second:.1f} characters/s; {low:g} to {high:g} is plausible for "
                + language,
                low,
                high,
                language=language,
            )
            for language, (low, high) in limits.characters_per_second.items()
        ),
    ]


def text_checks(side: str, language_column: str, limits: Limits) -> list[Check]:
    """The checks of one text of a row."""
    languages = ", ".join(limits.languages)
    return [
        Check(
            language_column,
            f"language '{{{language_column}}}' is not one of params.yaml's languages ({languages})",
            allowed=tuple(limits.languages),
        ),
        Check(f"{side}_characters", f"empty {side}: no letter or digit in it", low=1),
        Check(
            f"{side}_script",
            f"{side} is not in the script of '{{{language_column}}}': only {{{side}_script:.0%}} of its words "
            "are",
            low=SCRIPT_SHARE,
        ),
        Check(f"{side}_control", f"control characters in the {side}: {{{side}_control}}", allowed=("",)),
    ]


def pair_checks(sides: Sequence[str], limits: Limits) -> list[Check]:
    """The checks of a dialogue or a translation."""
    return [
        Check("id", "no id"),
        Check("split", "split '{split}' is unknown", allowed=SPLITS),
        *(check for side in sides for check in text_checks(side, f"{side}_language", limits)),
    ]
