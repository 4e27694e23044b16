"""The exit codes of dags/dvc_stage.py, by which Airflow and engines know how a stage has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).absolute().parents[2] / "dags" / "dvc_stage.py"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("exit 2", 1),
        ("exit 75", 75),
        ("kill -TERM $$", 75),
        ("sh -c 'kill -TERM $$'; exit $?", 75),
        ("kill -KILL $$", 137),
        ("sh -c 'kill -KILL $$'; exit $?", 137),
    ],
)
def test_the_exit_code_says_how_the_command_of_a_stage_ended(command: str, code: int, tmp_path: Path) -> None:
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (tmp_path / "dvc.yaml").write_text(f'stages:\n  ends:\n    cmd: "{command}"\n')
    where = ["--workspace", tmp_path, "--stage", "ends", "--result", tmp_path / "result.json"]
    variables = {"DVC_SITE_CACHE_DIR": str(tmp_path / "site"), "DVC_NO_ANALYTICS": "1"}
    ended = subprocess.run(
        [sys.executable, PROGRAM, *where],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == code, ended.stderr
    assert "failed to run: " in ended.stderr
    assert not (tmp_path / "result.json").exists()
