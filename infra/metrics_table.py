"""The table at the end of `make demo`: held-out figures beside the paper's and the targets."""

from __future__ import annotations

import json
from pathlib import Path

MARKS = {True: "ok", False: "MISSED", None: ""}


def table(headlines: Path) -> list[str]:
    """Lines of the table in `report/evaluation/headlines.json`, which components.evaluate writes."""
    rows = json.loads(headlines.read_text("utf-8"))
    heads = {"title": "held-out test set", "value": "this run", "interval": "95 % interval", "paper": "paper"}
    heads |= {"target": "target", "mark": ""}
    cells = [heads] + [{**row, "mark": MARKS[row["reached"]]} for row in rows]
    widths = {name: max(len(row[name]) for row in cells) for name in heads}
    return [
        "  ".join(
            row[name].ljust(width) if name in ("title", "mark") else row[name].rjust(width)
            for name, width in widths.items()
        ).rstrip()
        for row in cells
    ]
