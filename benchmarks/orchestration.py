"""What the orchestration costs: the wall time of `make demo` beside the time of the stages' own commands.

Run:  .venv/orchestrator/bin/python -m benchmarks.orchestration      (5 minutes on 2 cores)

The `test` profile runs twice in a clone of the checkout: with an empty cache, and with all of it cached. A
program in the place of the components' Python notes when each command begins and ends, so that all else is
orchestration: Airflow, clones, DVC, the link to MLflow. The database of a first start is made before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS, ROOT, Measured, record

PYTHON = """\
#!/bin/sh
began=$(date +%s.%N)
"{python}" "$@"
code=$?
echo "$began $(date +%s.%N)" >>"{log}"
exit $code
"""
COMMAND_S = 5.0
"""Allowed for each stage."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cslm-bench-") as scratch:
        clone = Path(scratch) / "checkout"
        subprocess.run(["git", "clone", "--quiet", "--local", ROOT, clone], check=True)
        (clone / ".venv").symlink_to(ROOT / ".venv")
        record(compare(clone, ROOT / ".venv/components/bin/python"), arguments.results)


def compare(project: Path, components: Path) -> dict[str, Measured]:
    """Seconds a stage beyond the commands' own, with nothing cached and with everything.

    Args:
        project: a checkout in which nothing has run.
        components: the Python of the components.
    """
    state = project / "var"
    log = _watched(components, state / "watched")
    environment = _environment(project)
    program = [sys.executable, "-c", "from infra.airflow_local import migrate; migrate()"]
    subprocess.run(program, cwd=project, env=environment, check=True)
    found: dict[str, Measured] = {}
    for run, what in (("nothing", "nothing cached"), ("all", "all cached")):
        log.write_text("", "utf-8")
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "infra.demo"],
            cwd=project,
            env=environment | {"RUN": run},
            capture_output=True,
            text=True,
            check=False,
        )
        wall = time.monotonic() - started
        if done.returncode:
            sys.exit(f"`make demo` failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        events = (state / "runs" / run / "events.jsonl").read_text("utf-8").splitlines()
        found[f"orchestration.{run}_cached"] = overhead(what, wall, own(log), stages(events))
    return found


def overhead(what: str, wall: float, commands: float, count: int) -> Measured:
    """Seconds a stage that are not the commands' own."""
    return Measured(
        f"Orchestration, {what}, {count} stages",
        "the stages' own commands",
        *((wall - commands) / count, commands / count, "s a stage", 1, f"ours <= {COMMAND_S:g}"),
    )


def own(log: Path) -> float:
    """Seconds of all commands; they run one after the other."""
    spans = [line.split() for line in log.read_text("utf-8").splitlines()]
    return sum(float(end) - float(began) for began, end in spans)


def stages(events: list[str]) -> int:
    """How many stages a run has, registration among them."""
    read: list[dict[str, Any]] = [json.loads(line) for line in events]
    return len(next(event["stages"] for event in read if event["state"] == "prepared")) + 1


def _watched(components: Path, folder: Path) -> Path:
    """A folder like that of `components`, but for a `python` that notes its times; the file it writes to."""
    folder.mkdir(parents=True)
    log, program = folder / "commands.log", folder / "python"
    for path in components.parent.iterdir():
        if path.name != program.name:
            (folder / path.name).symlink_to(path)
    program.write_text(PYTHON.format(python=components, log=log), "utf-8")
    program.chmod(0o755)
    return log


def _environment(project: Path) -> dict[str, str]:
    """Nothing of the caller's own runs."""
    callers = ("AIRFLOW", "CSLM", "DVC", "MLFLOW")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(callers)}
    return kept | {
        "PYTHONPATH": str(project),
        "CSLM_HOME": str(project / "var"),
        "CSLM_COMPONENTS": str(project / "var" / "watched"),
        "PROFILE": "test",
    }


if __name__ == "__main__":
    main()
