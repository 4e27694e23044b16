"""What happens in a run, one JSON object a line in runs/RUN/events.jsonl: `make demo` draws from it.

    {"time": 1732245000.1, "stage": "tokenize@en", "state": "started"}
    {"time": 1732245004.2, "stage": "tokenize@en", "state": "progress", "text": "120/800 utterances"}
    {"time": 1732245012.9, "stage": "tokenize@en", "state": "ran", "seconds": 12.8}

States of a stage: started, progress, then ran, cached or failed. The run itself is the stage '': prepared, then
finished, or failed outside of its stages.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

PROGRESS = "progress: "
"""A component's line that begins so is shown in place while the stage works."""
NOTE = "note: "
"""A component's line that begins so is shown behind the stage when it has ended."""


def emit(folder: Path, stage: str, state: str, **facts: Any) -> None:
    """Append one event; a line this short is written in one piece, whoever else writes."""
    folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"time": time.time(), "stage": stage, "state": state, **facts}, ensure_ascii=False)
    with _file(folder).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def last(folder: Path, stage: str, state: str) -> dict[str, Any] | None:
    """The latest event of a stage that tells of this state; None if there is none."""
    events = Reader(folder).read()
    return next((e for e in reversed(events) if (e["stage"], e["state"]) == (stage, state)), None)


class Reader:
    """The events of a run, and then those that other processes have added since."""

    def __init__(self, folder: Path) -> None:
        self._path = _file(folder)
        self._position = 0

    def read(self) -> list[dict[str, Any]]:
        """What is new."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._position)
            whole = file.read().rpartition(b"\n")
        self._position += len(whole[0]) + len(whole[1])
        return [json.loads(line) for line in whole[0].splitlines()]


def _file(folder: Path) -> Path:
    return folder / "events.jsonl"
