"""What a run tells of itself, whoever writes and reads it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from dags import events, places, run


def test_how_long_a_stage_took_counts_from_its_start_by_another_worker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As where a pod is waited for; of two tries it is the last."""
    monkeypatch.setenv("CSLM_HOME", str(tmp_path))
    folder = places.results("r")
    folder.mkdir(parents=True)
    lines = [
        {"time": time.time() - ago, "stage": stage, "state": "started"}
        for stage, ago in (("final", 900), ("final", 100), ("other", 10))
    ]
    (folder / "events.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with run.reported({"run": "r"}, "final") as ended:
        ended("ran", "")
    ran = events.last(folder, "final", "ran")
    assert ran is not None and 100 <= ran["seconds"] < 160
