"""What the benchmark of the orchestration counts as the stages' own time, and as overhead."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import orchestration


def test_commands_are_timed_and_keep_their_exit_code(tmp_path: Path) -> None:
    components = tmp_path / "components" / "python"
    components.parent.mkdir()
    components.symlink_to(sys.executable)
    (components.parent / "ninja").touch()
    log = orchestration._watched(components, tmp_path / "watched")
    program = tmp_path / "watched" / "python"
    waits = "import sys, time; time.sleep(0.3); sys.exit(int(sys.argv[1]))"
    codes = [subprocess.run([program, "-c", waits, code], check=False).returncode for code in ("0", "3")]
    assert codes == [0, 3]
    assert 0.6 < orchestration.own(log) < 5
    assert (tmp_path / "watched" / "ninja").exists(), "what the components find beside their Python"


def test_overhead_is_what_the_commands_did_not_take() -> None:
    events = [json.dumps({"state": "prepared", "stages": ["a", "b", "c"]}), json.dumps({"state": "started"})]
    count = orchestration.stages(events)
    assert count == 4, "registration is one too"
    row = orchestration.overhead("all cached", wall=30.0, commands=10.0, count=count)
    assert row.ours == pytest.approx(5.0) and row.baseline == pytest.approx(2.5)
