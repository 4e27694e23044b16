"""The work of the tasks of a run, apart from Airflow: one stage, register, record.

Each works in a clone of the run's commit, as `preparation` made it, with the cache that all clones share.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dags import events, graph, places, snapshot, tracking
from dags.dvc_stage import TRY_AGAIN

Facts = dict[str, Any]
Log = Callable[[str], None]
TAIL_LINES = 12
REGISTER = "register"
ENDED = 128 + signal.SIGTERM
TOLD_TO_END = (TRY_AGAIN, ENDED, -signal.SIGTERM)
"""Exit codes of a stage that another try may bring to its end: its machine, or a server, was away."""
MADE_BY_DVC = ("Running stage '", "> ", "Updating lock file", "Use `dvc push`")


class RunFailed(Exception):
    """A run cannot go on; the message names the stage, the cause, and where to read more."""


class MachineAway(RunFailed):
    """What should do the work, or a server that it needs, does not answer: another try may find it there."""


def failed(cause: str, error: Exception) -> RunFailed:
    """What to raise for an error that has an explanation."""
    away = isinstance(error, MachineAway | tracking.TrackingAway | ConnectionError | TimeoutError)
    return MachineAway(cause) if away else RunFailed(cause)


@dataclass(frozen=True)
class Work:
    """What brings one stage to its end: dags/dvc_stage.py with these arguments, in this folder."""

    address: str
    workspace: Path
    arguments: list[str]
    environment: dict[str, str]


def launch(work: Work, line: Log) -> int:
    """Do it in a child of this process, and give each line that it prints to a function; its exit code."""
    program = Path(__file__).with_name("dvc_stage.py")
    return _execute([sys.executable, str(program), *work.arguments], work.workspace, work.environment, line)


def run_stage(
    facts: Facts, stage: graph.Stage, item: str | None, log: Log, launch: Callable[[Work, Log], int] = launch
) -> str:
    """Bring one stage to its end in a workspace of its own; `cached` or `ran`. `launch` does the work.

    Raises:
        RunFailed: with the last lines that the stage printed.
    """
    work = start_stage(facts, stage, item)
    return end_stage(facts, stage, item, log, lambda line: launch(work, line))


def start_stage(facts: Facts, stage: graph.Stage, item: str | None) -> Work:
    """Make the workspace of a stage, and tell that it began; what is to be done there.

    Raises:
        RunFailed: there can be no workspace.
    """
    work = work_of(facts, stage, item)
    events.emit(places.results(facts["run"]), work.address, "started")
    with reported(facts, work.address):
        _workspace(facts, work.address)
    return work


def end_stage(facts: Facts, stage: graph.Stage, item: str | None, log: Log, doing: Callable[[Log], int]) -> str:
    """Do the work of a stage that was started, and gather what came out; `cached` or `ran`.

    `doing` gives each line that the work prints to the function that it gets, and returns its exit code.

    Raises:
        RunFailed: with the last lines that the stage printed.
    """
    work = work_of(facts, stage, item)
    with reported(facts, work.address) as ended:
        lines = _stream(doing, facts, work.address, log, work.workspace)
        state = str(json.loads(_result(work.workspace).read_text("utf-8"))["state"])
        for path in stage.metrics:
            file = work.workspace / graph.INTERPOLATION.sub(item or "", path)
            tracking.log_stage(facts["mlflow_run"], file, state)
        notes = [line.removeprefix(events.NOTE) for line in lines if line.startswith(events.NOTE)]
        ended(state, "; ".join(notes))
    for checkpoints in (places.home() / "checkpoints").glob(f"{work.address.replace('@', '-')}-*"):
        if (checkpoints / "finished").exists():  # and its result is in the cache now
            shutil.rmtree(checkpoints, ignore_errors=True)
    shutil.rmtree(work.workspace, ignore_errors=True)
    return state


def work_of(facts: Facts, stage: graph.Stage, item: str | None) -> Work:
    """What is to be done for a stage of a run; the same whenever it is asked."""
    address = stage.address(item)
    force = bool({"all", stage.name, address} & set(facts["force"]))
    return _work(facts, address, ["--stage", address, *(["--force"] if force else [])])


def _work(facts: Facts, address: str, options: list[str]) -> Work:
    workspace = places.workspace(facts["run"], address)
    pull = ["--pull"] if os.environ.get("CSLM_DVC_REMOTE") else []
    arguments = ["--workspace", str(workspace), "--result", str(_result(workspace)), *options, *pull]
    return Work(address, workspace, arguments, places.stage_environment(facts))


def _result(workspace: Path) -> Path:
    return workspace / ".dvc" / "tmp" / "result.json"


def measure(name: str, commit: str, addresses: Sequence[str], file: str, log: Log) -> str:
    """Bring stages to their end, in this order and outside of any run; what a file has that the last one made.

    Raises:
        RunFailed: with the last lines that a stage printed.
    """
    facts = {"run": name, "commit": commit, "mlflow_run": ""}
    for address in addresses:
        work = _work(facts, address, ["--stage", address])
        _workspace(facts, address)
        _stream(lambda line, work=work: launch(work, line), facts, address, log, work.workspace)
    text = (work.workspace / file).read_text("utf-8")
    shutil.rmtree(places.home() / "workspaces" / name, ignore_errors=True)
    return text


def register(facts: Facts, log: Log) -> None:
    """Gather all results, and let the register component make a version of them."""
    run, folder = facts["run"], places.results(facts["run"])
    work = _work(facts, REGISTER, ["--restore-all"])
    command = [python(), "-m", "components.register"]
    events.emit(folder, REGISTER, "started")
    with reported(facts, REGISTER) as ended:
        _workspace(facts, REGISTER)
        _stream(lambda line: launch(work, line), facts, REGISTER, log, work.workspace)
        for name in ("dvc.lock", "metrics", "report"):
            _copy(work.workspace / name, folder / name)
        _copy(work.workspace / "metrics", places.PROJECT / "metrics")
        lines = _stream(
            lambda line: _execute(command, work.workspace, work.environment, line),
            *(facts, REGISTER, log, work.workspace),
        )
        version = next((line for line in reversed(lines) if line.strip()), "")
        ended("ran", version)
    log(f"run {run}: {version}")
    shutil.rmtree(work.workspace, ignore_errors=True)


@contextmanager
def reported(facts: Facts, address: str) -> Iterator[Callable[[str, str], None]]:
    """Note among the run's events how a task ended (by the function given), or why it failed.

    Raises:
        RunFailed: for every failure that has an explanation.
    """
    folder = places.results(facts["run"])
    started = events.last(folder, address, "started")
    began = float(started["time"]) if started else time.time()
    try:
        yield lambda state, text: events.emit(
            folder, address, state, seconds=time.time() - began, **({"text": text} if text else {})
        )
    except (RunFailed, snapshot.SnapshotFailed, tracking.TrackingFailed, OSError) as error:
        cause = str(error)
        if not isinstance(error, RunFailed):
            cause = f"stage {address} failed\n  cause:\n    {error}"
        events.emit(folder, address, "failed", seconds=time.time() - began, cause=cause)
        with suppress(tracking.TrackingFailed):
            tracking.end(facts["mlflow_run"], "FAILED")
        raise failed(cause, error) from error


@contextmanager
def reported_run(name: str) -> Iterator[None]:
    """Note among a run's events why it failed outside of its stages."""
    try:
        yield
    except (RunFailed, snapshot.SnapshotFailed, tracking.TrackingFailed) as error:
        cause = f"run {name} failed\n  cause:\n{textwrap.indent(str(error), '    ')}"
        events.emit(places.results(name), "", "failed", cause=cause)
        raise


def record(facts: Facts, log: Log) -> str:
    """Commit dvc.lock and metrics on the run's branch and close the MLflow run; returns the commit."""
    run, folder = facts["run"], places.results(facts["run"])
    files = {"dvc.lock": folder / "dvc.lock"}
    files |= {str(file.relative_to(folder)): file for file in sorted((folder / "metrics").rglob("*.json"))}
    with reported_run(run):
        commit_id = snapshot.add_files(places.PROJECT, f"runs/{run}", files, results_message(run))
        _accept(folder / "report" / "validation" / "statistics.json")
        tracking.end(facts["mlflow_run"], "FINISHED")
    shutil.rmtree(places.home() / "workspaces" / run, ignore_errors=True)
    events.emit(folder, "", "finished", commit=commit_id)
    log(f"run {run}: results are commit {commit_id} on branch runs/{run}")
    return commit_id


def results_message(run: str) -> str:
    """Subject of the commits on a run's branch that hold what came out."""
    return f"Results of run {run}"


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


def _workspace(facts: Facts, address: str) -> None:
    """A clone of the run's commit whose DVC uses the shared cache and the checkout's embedded store."""
    workspace = places.workspace(facts["run"], address)
    snapshot.clone(places.PROJECT, facts["commit"], workspace)
    # What an earlier run has noted would keep a stage that is forced from being asked for.
    (workspace / "dvc.lock").unlink(missing_ok=True)
    _result(workspace).parent.mkdir(parents=True, exist_ok=True)
    write_dvc_config(workspace, no_scm=True)


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
        lines += ["['remote \"runs\"']", f"    url = {remote}", "    verify = true"]
        lines[1:1] = ["    remote = runs"]
    (checkout / ".dvc" / "config.local").write_text("\n".join(lines) + "\n", "utf-8")


def _stream(work: Callable[[Log], int], facts: Facts, address: str, log: Log, workspace: Path) -> list[str]:
    """Do some work, pass on each line that it tells as it comes, and return them.

    Raises:
        MachineAway: it was told to end, or a server is away, so another try may come to the end.
        RunFailed: its exit code is any other than zero.
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
        again = code in TOLD_TO_END
        how = f"killed by signal {-code}" if code < 0 else ""
        how = "it goes on when it is tried again" if again else how
        raise (MachineAway if again else RunFailed)(
            f"stage {address} failed{f' ({how})' if how else ''}\n"
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
    try:
        for text in process.stdout:
            line(text.rstrip("\n"))
    except BaseException:  # a time limit: what was started must not outlive it
        process.terminate()
        process.wait()
        raise
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
