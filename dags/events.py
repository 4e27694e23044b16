"""What happens in a run, one JSON object a line in runs/RUN/events.jsonl: `make demo` draws from it.

    {"time": 1732245000.1, "stage": "tokenize@en", "state": "started"}
    {"time": 1732245004.2, "stage": "tokenize@en", "state": "progress", "text": "120/800 utterances"}
    {"time": 1732245012.9, "stage": "tokenize@en", "state": "ran", "seconds": 12.8}

States of a stage: started, progress, then ran, cached or failed. The run itself is the stage ''.
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
    with (folder / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
