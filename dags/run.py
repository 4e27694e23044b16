"""The work of the tasks of a run, apart from Airflow: one stage, register, record.

Each works in a clone of the run's commit, as `preparation` made it, with the cache that all clones share.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dags import events, graph, places, snapshot, tracking

Facts = dict[str, Any]
Log = Callable[[str], None]
Launch = Callable[[list[str], Path, dict[str, str], Log], int]
"""Runs dvc_stage.py somewhere: its arguments, folder, environment, who gets each line -> exit code."""

TAIL_LINES = 12
REGISTER = "register"
MADE_BY_DVC = ("Running stage '", "> ", "Updating lock file", "Use `dvc push`")


class RunFailed(Exception):
    """A run cannot go on; the message names the stage, the cause, and where to read more."""


def launch(arguments: list[str], workspace: Path, environment: dict[str, str], line: Log) -> int:
    """Run dvc_stage.py as a child of this process."""
    program = Path(__file__).with_name("dvc_stage.py")
    return _execute([sys.executable, str(program), *arguments], workspace, environment, line)


def run_stage(facts: Facts, stage: graph.Stage, item: str | None, log: Log, launch: Launch = launch) -> str:
    """Bring one stage to its end in a workspace of its own; `cached` or `ran`.

    Raises:
        RunFailed: with the last lines that the stage printed.
    """
    address = stage.address(item)
    force = bool({"all", stage.name, address} & set(facts["force"]))
    options = ["--stage", address, *(["--force"] if force else [])]
    with _told(facts, address) as ended:
        workspace = _workspace(facts, address)
        state, notes = _dvc(facts, workspace, address, options, log, launch)
        for path in stage.metrics:
            file = workspace / graph.INTERPOLATION.sub(item or "", path)
            tracking.log_stage(facts["mlflow_run"], file, state)
        ended(state, "; ".join(notes))
    for checkpoints in (places.home() / "checkpoints").glob(f"{stage.name}-*"):
        if (checkpoints / "finished").exists():  # and its result is in the cache now
            shutil.rmtree(checkpoints, ignore_errors=True)
    shutil.rmtree(workspace, ignore_errors=True)
    return state


def register(facts: Facts, log: Log) -> None:
    """Gather all results, and let the register component make a version of them."""
    run, folder = facts["run"], places.results(facts["run"])
    with _told(facts, REGISTER) as ended:
        workspace = _workspace(facts, REGISTER)
        _dvc(facts, workspace, REGISTER, ["--restore-all"], log, launch)
        for name in ("dvc.lock", "metrics", "report"):
            _copy(workspace / name, folder / name)
        _copy(workspace / "metrics", places.PROJECT / "metrics")
        command = [python(), "-m", "components.register"]
        environment = places.stage_environment(facts)
        lines = _stream(
            lambda line: _execute(command, workspace, environment, line), facts, REGISTER, log, workspace
        )
        version = next((line for line in reversed(lines) if line.strip()), "")
        ended("ran", version)
    log(f"run {run}: {version}")
    shutil.rmtree(workspace, ignore_errors=True)


@contextmanager
def _told(facts: Facts, address: str) -> Iterator[Callable[[str, str], None]]:
    """Tell the world that a task began, how it ended (by the function given), or why it failed.

    Raises:
        RunFailed: for every failure that has an explanation.
    """
    folder, begin = places.results(facts["run"]), time.monotonic()
    events.emit(folder, address, "started")
    try:
        yield lambda state, text: events.emit(
            folder, address, state, seconds=time.monotonic() - begin, **({"text": text} if text else {})
        )
    except (RunFailed, snapshot.SnapshotFailed, tracking.TrackingFailed, OSError) as error:
        cause = str(error)
        if not isinstance(error, RunFailed):
            cause = f"stage {address} failed\n  cause:\n    {error}"
        events.emit(folder, address, "failed", seconds=time.monotonic() - begin, cause=cause)
        with suppress(tracking.TrackingFailed):
            tracking.end(facts["mlflow_run"], "FAILED")
        raise RunFailed(cause) from error


def record(facts: Facts, log: Log) -> str:
    """Commit dvc.lock and metrics on the run's branch and close the MLflow run; returns the commit."""
    run, folder = facts["run"], places.results(facts["run"])
    files = {"dvc.lock": folder / "dvc.lock"}
    files |= {str(file.relative_to(folder)): file for file in sorted((folder / "metrics").rglob("*.json"))}
    commit_id = snapshot.add_files(places.PROJECT, f"runs/{run}", files, f"Results of run {run}")
    _accept(folder / "report" / "validation" / "statistics.json")
    tracking.end(facts["mlflow_run"], "FINISHED")
    shutil.rmtree(places.home() / "workspaces" / run, ignore_errors=True)
    events.emit(folder, "", "finished", commit=commit_id)
    log(f"run {run}: results are commit {commit_id} on branch runs/{run}")
    return commit_id


def _accept(statistics: Path) -> None:
    """From now on validation measures drift against the data of this run. By profile; others stay."""
    if not statistics.exists():
        return
    reference = places.home() / "reference" / "validation.json"
    known = json.loads(reference.read_text("utf-8")) if reference.exists() else {}
    reference.parent.mkdir(exist_ok=True)
    partial = reference.with_suffix(".partial")
    partial.write_text(json.dumps(known | json.loads(statistics.read_text("utf-8")), indent=1) + "\n", "utf-8")
    partial.rename(reference)


def _workspace(facts: Facts, address: str) -> Path:
    """A clone of the run's commit whose DVC uses the shared cache and the checkout's embedded store."""
    workspace = places.workspace(facts["run"], address)
    snapshot.clone(places.PROJECT, facts["commit"], workspace)
    write_dvc_config(workspace, no_scm=True)
    return workspace


def write_dvc_config(checkout: Path, no_scm: bool = False) -> None:
    """.dvc/config.local: shared cache, the embedded store where the checkout has it, the runs' remote if any.

    A workspace needs nothing of DVC's dealings with git (`no_scm`): nothing is committed from there.
    """
    lines = [
        "[core]",
        f"    no_scm = {str(no_scm).lower()}",
        f"    site_cache_dir = {places.home() / 'dvc' / 'site'}",
        "[cache]",
        f"    dir = {places.home() / 'dvc-cache'}",
        "    type = reflink,hardlink,symlink,copy",
        "['remote \"embedded\"']",
        f"    url = {places.PROJECT / 'store'}",
    ]
    if remote := os.environ.get("CSLM_DVC_REMOTE"):
        lines += ["['remote \"runs\"']", f"    url = {remote}"]
        lines[1:1] = ["    remote = runs"]
    (checkout / ".dvc" / "config.local").write_text("\n".join(lines) + "\n", "utf-8")


def _dvc(
    facts: Facts, workspace: Path, address: str, options: list[str], log: Log, launch: Launch
) -> tuple[str, list[str]]:
    """`cached` or `ran`, and what the stage wants to be known of it."""
    result = workspace / ".dvc" / "tmp" / "result.json"
    result.parent.mkdir(parents=True, exist_ok=True)
    pull = ["--pull"] if os.environ.get("CSLM_DVC_REMOTE") else []
    arguments = ["--workspace", str(workspace), "--result", str(result), *options, *pull]
    environment = places.stage_environment(facts)
    lines = _stream(
        lambda line: launch(arguments, workspace, environment, line), facts, address, log, workspace
    )
    notes = [line.removeprefix(events.NOTE) for line in lines if line.startswith(events.NOTE)]
    return str(json.loads(result.read_text("utf-8"))["state"]), notes


def _stream(work: Callable[[Log], int], facts: Facts, address: str, log: Log, workspace: Path) -> list[str]:
    """Do some work, pass on each line that it tells as it comes, and return them.

    Raises:
        RunFailed: its exit code is not zero.
    """
    path = places.stage_log(facts["run"], address)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    with path.open("a", encoding="utf-8") as file:

        def line(text: str) -> None:
            file.write(text + "\n")
            file.flush()
            if text.startswith(events.PROGRESS):
                progress = text.removeprefix(events.PROGRESS)
                events.emit(places.results(facts["run"]), address, "progress", text=progress)
            elif text.strip():
                lines.append(text)
            log(text)

        code = work(line)
    if code:
        cause = "\n".join(f"    {line}" for line in _cause(lines)) or "    it printed nothing"
        raise RunFailed(
            f"stage {address} failed{f' (killed by signal {-code})' if code < 0 else ''}\n"
            f"  cause:\n{cause}\n  log: {path}\n  its files: {workspace}"
        )
    return lines


def _execute(command: list[str], folder: Path, environment: dict[str, str], line: Log) -> int:
    """Run a command, and give each line that it prints to a function; its exit code (-9: killed by signal 9).

    Raises:
        RunFailed: there is no such program.
    """
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise RunFailed(f"{error.filename} is not there: run `make setup`") from error
    assert process.stdout is not None
    for text in process.stdout:
        line(text.rstrip("\n"))
    return process.wait()


def _cause(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith(MADE_BY_DVC)][-TAIL_LINES:]


def python() -> str:
    """The components' interpreter."""
    return str(places.components_bin() / "python")


def _copy(source: Path, target: Path) -> None:
    """Real copies (the workspace holds read-only links into the cache), replacing what was there."""
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, copy_function=shutil.copyfile)
    elif source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
