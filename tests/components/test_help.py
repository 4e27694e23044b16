"""`python -m components.NAME --help` tells what the component reads and writes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
BY_ITEM = {"metrics", "work/corpora", "work/units"}


@pytest.mark.parametrize("name", sorted(STAGES))
def test_help_names_inputs_and_outputs(name: str) -> None:
    stage = STAGES[name].get("do", STAGES[name])
    text = subprocess.run(
        [sys.executable, "-m", f"components.{name}", "--help"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    folders = [path for path in (*stage["deps"], *stage["outs"]) if path.startswith(("work/", "report/"))]
    for folder in folders:
        root = re.sub(r"/\$.*", "", folder)
        assert root in text, f"{name} --help does not name {folder}"
