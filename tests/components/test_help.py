"""`python -m components.NAME --help` tells what the component reads and writes."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]


@pytest.mark.parametrize("name", sorted(STAGES))
def test_help_names_inputs_and_outputs(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, which needs a minute less to import torch than one for each."""
    for variable, value in {"COLUMNS": "200", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"components.{name}", run_name="__main__", alter_sys=True)
    assert not ended.value.code
    text = capsys.readouterr().out
    stage = STAGES[name].get("do", STAGES[name])
    folders = [path for path in (*stage["deps"], *stage["outs"]) if path.startswith(("work/", "report/"))]
    for folder in folders:
        root = re.sub(r"/\$.*", "", folder)
        assert root in text, f"{name} --help does not name {folder}"
