"""A clone of the checkout, and runs of its `test` profile."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
ORCHESTRATOR = ROOT / ".venv" / "orchestrator" / "bin" / "python"
CALLERS = ("AIRFLOW", "CSLM", "DVC", "MLFLOW")
"""Beginnings of the names of what tells a run of the caller where its state lies."""
DATES = dict.fromkeys(("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"), "2026-01-01T00:00:00Z")
"""Of the commit of a clone: two processes that clone one checkout have the same commit."""


def make(folder: Path) -> Path:
    """A clone of the checkout as it is, with the checkout's environments."""
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, files.split("\0")):
        source, target = ROOT / name, folder / name
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    for command in (["init", "--quiet"], ["add", "--all"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    commit = ["git", *identity, "commit", "--quiet", "-m", "A clone"]
    subprocess.run(commit, cwd=folder, env=os.environ | DATES, check=True)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    return folder


def demo(clone: Path, **variables: str) -> tuple[str, float]:
    """Output and seconds of a run of the test profile."""
    started = time.monotonic()
    result = _demo(clone, variables)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout, time.monotonic() - started


def failure(clone: Path, **variables: str) -> str:
    """All that a run of the test profile says that cannot succeed."""
    result = _demo(clone, variables)
    assert result.returncode == 1, result.stdout + result.stderr
    return result.stdout + result.stderr


def _demo(clone: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ORCHESTRATOR, "-m", "infra.demo"],
        cwd=clone,
        env=environment(clone) | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def environment(clone: Path) -> dict[str, str]:
    """What a command in the clone is started with: nothing of the caller's own run."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(CALLERS)}
    return kept | {"PYTHONPATH": str(clone), "CSLM_HOME": str(clone / "var"), "PROFILE": "test"}


def outputs(home: Path, run: str) -> dict[str, str]:
    """Digests of what the stages of a run made; their metrics name the run and how long it took."""
    stages = yaml.safe_load((home / "runs" / run / "dvc.lock").read_text("utf-8"))["stages"]
    outs = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
    return {path: digest for path, digest in outs.items() if path.startswith("work/")}
